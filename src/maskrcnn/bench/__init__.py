"""Measurement of time, memory and multiply-adds."""
