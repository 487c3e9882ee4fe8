"""Suites of `guard evaluate`, as TOML files."""
