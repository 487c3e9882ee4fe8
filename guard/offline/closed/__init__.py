"""Models that cannot be opened: their answers, and the student that is distilled from them."""
