"""Crafting of attacked items: verified, in shards, resumable."""
