"""The fake of $FAKE_TENSORRT as `tensorrt`, for processes that a test starts with this folder on PYTHONPATH."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import fake_tensorrt

sys.modules[__name__] = fake_tensorrt.module(os.environ["FAKE_TENSORRT"])
