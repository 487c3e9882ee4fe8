"""The kinds of evidence, by the pass that they come with."""
