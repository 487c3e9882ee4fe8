"""Transposes of operators: one file a kind of operator, read by `input_gradient`."""
