"""Presets of `guard train`, which are recipes as TOML files."""
