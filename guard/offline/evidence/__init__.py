"""Kinds of evidence, and the code that gathers all of it in as few passes as possible."""
