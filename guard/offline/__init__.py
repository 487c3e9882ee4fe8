"""The offline side, which is all that needs torch: from a model and clean data to a bundle."""
