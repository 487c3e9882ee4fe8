"""Parts that several detectors are made of."""
