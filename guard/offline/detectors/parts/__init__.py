"""What several detectors are made of."""
