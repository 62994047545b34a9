"""Runs a checkpoint in stock Ultralytics, in a process without edgeprune."""

#: A user's process with stock Ultralytics and without edgeprune.
STOCK = """
import sys
sys.modules["edgeprune"] = sys.modules["edgeprune_device"] = None
from ultralytics import YOLO
model = YOLO(sys.argv[1])
parameters = sum(p.numel() for p in model.model.parameters())
predictions = model.predict(sys.argv[2], imgsz=96, verbose=False, save=False)
metrics = model.val(data=sys.argv[3], imgsz=96, workers=0, plots=False, verbose=False, batch=4, project=sys.argv[4])
onnx = model.export(format="onnx", imgsz=96, verbose=False)
print("STOCK", parameters, len(predictions), metrics.box.map >= 0, onnx)
"""
