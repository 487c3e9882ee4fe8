"""Kinds of evidence, and how all of it is gathered at once."""
