"""The classifier as a graph, whatever its source, and that graph with its input gradient."""
