"""FP32 ONNX -> FP16 ONNX and INT8 Q/DQ ONNX.

    ranges = calibrate(fp32, pictures)
    fp16 = to_fp16(fp32, ranges).model                                    model.fp16.onnx
    int8 = to_int8(fp32, ranges, method="mse")                            model.int8.onnx
    mixed = to_int8(fp32, ranges, method="mse", rest="fp16")              model.int8-fp16.onnx
    cpu = to_int8(fp32, ranges, method="mse", activations="unsigned")     model.int8.onnx for target cpu

    int8 = correct_bias(fp32, int8, pictures)                             any of the three: the mean shift taken back

`check` proves the rules of a quantized graph; `choose` takes the calibration method that measures best.
"""

from .calibrate import METHODS, Ranges, TensorRange, calibrate
from .check import check, int8_share
from .choose import Choice, choose
from .correct import correct_bias
from .fp16 import Fp16, Kept, to_fp16
from .int8 import signed_grids, to_int8
from .reference import reference_session, rounded

__all__ = [
    "METHODS",
    "Choice",
    "Fp16",
    "Kept",
    "Ranges",
    "TensorRange",
    "calibrate",
    "check",
    "choose",
    "correct_bias",
    "int8_share",
    "reference_session",
    "rounded",
    "signed_grids",
    "to_fp16",
    "to_int8",
]
