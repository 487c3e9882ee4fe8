"""The sidecar: stands between clients and the model server, and lets through what it has inspected."""
