"""Ultralytics' training of a pruned architecture: fine-tuning, distillation, quantization-aware training,
trackers.
"""
