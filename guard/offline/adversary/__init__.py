"""Adaptive attack on the guard: its risk as a differentiable function, and the descents on it."""
