"""The guard: a shield for production classifiers, in front of any Open Inference Protocol server."""
