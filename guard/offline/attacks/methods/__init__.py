"""Published attacks, one method a file."""
