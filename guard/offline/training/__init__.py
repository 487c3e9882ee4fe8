"""Training of a bundle: crafted sets become heads, programs and a calibration."""
