"""A trained detector -> one ONNX file, and a check that both give the same detections."""
