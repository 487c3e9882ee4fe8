"""The one canonical graph that every model becomes, and small operations on it."""
