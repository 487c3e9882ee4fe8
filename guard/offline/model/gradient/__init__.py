"""The gradient to the input, written as further nodes of the model's own graph."""
