"""The findings of an evaluation: values, their intervals, and the names of attacks."""
