"""An ONNX file becomes a torch graph."""
