"""The audit of requests: what is written about them, and by whom, beside the requests' own way."""
