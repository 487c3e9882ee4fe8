"""Export of torch modules to ONNX graphs that ONNX Runtime computes fast."""
