"""Exports a network to ONNX in FP32, FP16 and INT8, each with a gate; the ONNX parser and
builder of TensorRT for RTX check the files.
"""
