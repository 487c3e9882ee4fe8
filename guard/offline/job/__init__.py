"""Requests to the guard as values: recipes, suites, the settings of a training."""
