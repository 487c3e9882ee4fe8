"""Generated protobuf stubs (by proto/generate.py), in a descriptor pool of their own."""
