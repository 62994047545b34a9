"""Exports a network to ONNX in FP32, FP16 and INT8, each with a gate; NVIDIA's parser and builder check the files."""
