"""An Ultralytics network: its checkpoint, its cost, its preparation for inference, its CPU threads."""
