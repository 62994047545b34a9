"""A network becomes files: ONNX in FP32, then FP16 and INT8, each gated; NVIDIA's parser and builder read them."""
