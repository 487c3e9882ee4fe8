"""Checks of a guard's surroundings: what `guard doctor` finds wrong, and what to do about it."""
