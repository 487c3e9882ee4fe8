"""Clean data: items and their splits, the grid of their values, natural shifts."""
