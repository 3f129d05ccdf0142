"""Predicting without torch: numpy and onnxruntime alone."""
