"""Small networks that attacks and detectors train for themselves, and the loop that trains them."""
