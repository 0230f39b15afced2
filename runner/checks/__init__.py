"""Checks: what proves that the copy is what left."""
