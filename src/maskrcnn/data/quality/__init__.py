"""Checks of a data set before training, and advice on it."""
