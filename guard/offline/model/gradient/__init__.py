"""The gradient to the input, as further nodes of the model's own graph."""
