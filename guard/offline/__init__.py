"""Everything that needs torch: from a model and clean data to a bundle."""
