"""Lists of attacks to be evaluated against, as data."""
