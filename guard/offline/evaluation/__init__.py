"""The rows of a report: attacks, clean items, suites, the attacker who knows the guard."""
