"""Suites as TOML files: lists of attacks to be evaluated against."""
