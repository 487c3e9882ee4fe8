"""What the guard was asked for: recipes, suites, the settings of a training."""
