"""A trained detector -> one ONNX file, and the proof that both find the same."""
