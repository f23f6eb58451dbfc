"""Parameter names of the published files, a publisher a file."""
