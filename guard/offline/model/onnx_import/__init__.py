"""Import of ONNX files as torch graphs."""
