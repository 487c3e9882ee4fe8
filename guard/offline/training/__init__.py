"""Crafted sets become heads, programs and a calibrated bundle."""
