"""Published attacks in our own torch code, one method a file; `table.py` lists them."""
