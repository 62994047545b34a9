"""An Ultralytics network: checkpoint, cost, preparation for inference, CPU threads."""
