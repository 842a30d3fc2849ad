"""Smaller models from finished ones."""
