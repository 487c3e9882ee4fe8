"""A torch module becomes an ONNX graph that ONNX Runtime computes fast."""
