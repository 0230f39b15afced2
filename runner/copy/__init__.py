"""The only copy loop: prepare, write, read back, journal."""
