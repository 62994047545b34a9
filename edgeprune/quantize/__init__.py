"""FP32 ONNX -> FP16 ONNX and INT8 Q/DQ ONNX.

    ranges = calibrate(fp32, images)
    fp16 = to_fp16(fp32, ranges).model                                    model.fp16.onnx
    int8 = to_int8(fp32, ranges, method="mse")                            model.int8.onnx
    mixed = to_int8(fp32, ranges, method="mse", rest="fp16")              model.int8-fp16.onnx
    cpu = to_int8(fp32, ranges, method="mse", activations="unsigned")     model.int8.onnx for target cpu

    int8 = correct_bias(fp32, int8, images)                             any of the three, with corrected biases

`check` verifies the rules of a quantized graph. `choose` selects the calibration method with the best mAP.
`sensitivities` measures the cost of rounding each layer, and a `Ladder` orders the layers for layer fallback.
"""

from edgeprune.quantize.calibrate import METHODS, Ranges, TensorRange, calibrate
from edgeprune.quantize.check import check, int8_share
from edgeprune.quantize.choose import Choice, choose
from edgeprune.quantize.correct import bias_shifts, correct_bias, shifted
from edgeprune.quantize.divergence import output_divergence
from edgeprune.quantize.fp16 import Fp16, Kept, fp32_nodes, to_fp16
from edgeprune.quantize.int8 import signed_grids, to_int8
from edgeprune.quantize.ladder import Ladder
from edgeprune.quantize.reference import reference_session, rounded
from edgeprune.quantize.sensitivity import LayerSensitivity, Probe, sensitivities

__all__ = [
    "METHODS",
    "Choice",
    "Fp16",
    "Kept",
    "Ladder",
    "LayerSensitivity",
    "Probe",
    "Ranges",
    "TensorRange",
    "bias_shifts",
    "calibrate",
    "check",
    "choose",
    "correct_bias",
    "fp32_nodes",
    "int8_share",
    "output_divergence",
    "reference_session",
    "rounded",
    "sensitivities",
    "shifted",
    "signed_grids",
    "to_fp16",
    "to_int8",
]
