"""The report as one JSON file and one self-contained page."""
