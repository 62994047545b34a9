"""{runtime: ONNX Runtime's GPU provider that it uses}."""

PROVIDERS = {"ort-cuda": "CUDAExecutionProvider", "ort-tensorrt": "TensorrtExecutionProvider"}
