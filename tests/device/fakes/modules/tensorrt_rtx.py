"""Like tensorrt.py beside this file, for TensorRT for RTX."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import fake_tensorrt

sys.modules[__name__] = fake_tensorrt.module(fake_tensorrt.RTX)
