"""FP32 ONNX -> FP16 ONNX and INT8 Q/DQ ONNX.

    ranges = calibrate(fp32, pictures)
    fp16 = to_fp16(fp32, ranges).model                                    model.fp16.onnx
    int8 = to_int8(fp32, ranges, method="mse")                            model.int8.onnx
    mixed = to_int8(fp32, ranges, method="mse", rest="fp16")              model.int8-fp16.onnx
    cpu = to_int8(fp32, ranges, method="mse", activations="unsigned")     model.int8.onnx for target cpu

    int8 = correct_bias(fp32, int8, pictures)                             any of the three: the mean shift taken back

`check` proves the rules of a quantized graph; `choose` takes the calibration method that measures best; `sensitivities`
says what each layer's rounding costs, and a `Ladder` which layers leave INT8 first where it costs too much.
"""

from .calibrate import METHODS, Ranges, TensorRange, calibrate
from .check import check, int8_share
from .choose import Choice, choose
from .correct import bias_shifts, correct_bias, shifted
from .disagreement import disagreement
from .fp16 import Fp16, Kept, fp32_nodes, to_fp16
from .int8 import signed_grids, to_int8
from .ladder import Ladder
from .reference import reference_session, rounded
from .sensitivity import Probe, Sensitivity, sensitivities

__all__ = [
    "METHODS",
    "Choice",
    "Fp16",
    "Kept",
    "Ladder",
    "Probe",
    "Ranges",
    "Sensitivity",
    "TensorRange",
    "bias_shifts",
    "calibrate",
    "check",
    "choose",
    "correct_bias",
    "disagreement",
    "fp32_nodes",
    "int8_share",
    "reference_session",
    "rounded",
    "sensitivities",
    "shifted",
    "signed_grids",
    "to_fp16",
    "to_int8",
]
