"""The conformance of a guard: every remote procedure of a model server, called directly and through the guard."""
