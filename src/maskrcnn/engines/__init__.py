"""Everything that makes a model fast without changing what it computes: see `engines.prepare`."""
