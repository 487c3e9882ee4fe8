"""`guard bench`: what a bundle costs beside its model alone."""
