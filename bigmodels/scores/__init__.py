"""Figures of whole sets, on the host."""
