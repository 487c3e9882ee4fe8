"""The rows of a report: attacks, clean items, suites and the adaptive attack."""
