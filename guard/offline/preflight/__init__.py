"""Checks of a model and its data in the first minute, before anything is trained."""
