"""Small networks that attacks, detectors and denoisers train for themselves, and the loop that trains them."""
