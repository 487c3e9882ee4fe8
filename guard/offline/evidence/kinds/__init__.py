"""Kinds of evidence, one file for each pass that they come with."""
