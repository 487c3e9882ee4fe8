"""Attacked items are made here: verified, in shards, resumably."""
