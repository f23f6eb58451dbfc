"""Weight files: the safe readers, the names of each publisher, and conversion both ways."""
