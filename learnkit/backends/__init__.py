"""Where networks run: onnxruntime, OpenVINO, torch; what each can do here, and the way there."""
