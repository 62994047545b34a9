"""ONNX Runtime's GPU providers, by the runtime that uses them."""

PROVIDERS = {"ort-cuda": "CUDAExecutionProvider", "ort-tensorrt": "TensorrtExecutionProvider"}
