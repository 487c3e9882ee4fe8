"""Second networks: those that the operator brings, and those that the guard trains."""
