"""Transpose rules of operators: one file for each kind of operator, read by `input_gradient`."""
