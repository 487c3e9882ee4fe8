"""Presets of `guard train`, as TOML files."""
