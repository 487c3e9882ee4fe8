"""The page of an audit log: what `guard serve` wrote about requests, counted and drawn."""
