"""The attacker who knows the guard: its risk, differentiable, and the descents on it."""
