"""Image files to pixels, and the resize of test time."""
