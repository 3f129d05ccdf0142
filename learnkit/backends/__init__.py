"""Backends that run networks: onnxruntime, OpenVINO, torch; what each can do here."""
