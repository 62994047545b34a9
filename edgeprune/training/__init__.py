"""Ultralytics' training of a pruned architecture: fine-tuning, distillation, INT8-aware training, trackers."""
