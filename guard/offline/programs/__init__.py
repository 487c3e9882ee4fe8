"""The torch programs of a guard, and the ONNX files that they become."""
