"""Denoisers, one published method a file."""
