"""Query memory: what many requests of one principal show together, and no single one does."""
