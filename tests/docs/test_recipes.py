"""The DeepStream parser of docs/recipes.md finds the boxes that edgeprune finds. It is compiled against a header with
NVIDIA's published structures, without DeepStream."""

import ctypes
import json
import subprocess
import sys

import numpy as np
import pytest
from edgeprune_device.output import RAW
from edgeprune_device.vision.detect import detections

from . import blocks
from .world import ROOT

#: The structures of nvdsinfer.h and nvdsinfer_custom_impl.h that a parser uses.
HEADER = """
#pragma once
#include <vector>
typedef struct { unsigned numDims; unsigned d[8]; unsigned numElements; } NvDsInferDims;
typedef enum { FLOAT = 0, HALF = 1, INT8 = 2, INT32 = 3 } NvDsInferDataType;
typedef struct {
  NvDsInferDataType dataType; union { NvDsInferDims inferDims; NvDsInferDims dims; };
  int bindingIndex; const char *layerName; void *buffer; int isInput;
} NvDsInferLayerInfo;
typedef struct { unsigned width, height, channels; } NvDsInferNetworkInfo;
typedef struct { unsigned classId; float left, top, width, height, detectionConfidence; } NvDsInferObjectDetectionInfo;
typedef struct {
  unsigned numClassesConfigured; std::vector<float> perClassPreclusterThreshold, perClassPostclusterThreshold;
} NvDsInferParseDetectionParams;
typedef bool (*NvDsInferParseCustomFunc)(std::vector<NvDsInferLayerInfo> const &, NvDsInferNetworkInfo const &,
  NvDsInferParseDetectionParams const &, std::vector<NvDsInferObjectDetectionInfo> &);
#define CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(function) static NvDsInferParseCustomFunc check_##function = function;
"""
CALL = """
#include "nvdsinfer_edgeprune.cpp"
extern "C" int call(
    int rows, float *data, unsigned a, unsigned b, unsigned side, unsigned classes, float least, float *out) {
  NvDsInferLayerInfo layer{};
  layer.dataType = FLOAT, layer.buffer = data;
  layer.inferDims.numDims = 2, layer.inferDims.d[0] = a, layer.inferDims.d[1] = b;
  NvDsInferParseDetectionParams params;
  params.numClassesConfigured = classes;
  params.perClassPreclusterThreshold.assign(classes, least);
  Objects objects;
  auto parse = rows ? check_NvDsInferParseEdgepruneRows : check_NvDsInferParseEdgepruneRaw;
  if (!parse({layer}, {side, side, 3}, params, objects)) return -1;
  for (auto &o : objects)
    for (float value : {o.left, o.top, o.left + o.width, o.top + o.height, o.detectionConfidence, float(o.classId)})
      *out++ = value;
  return objects.size();
}
"""
SIDE, CLASSES, LEAST = 320, 5, 0.25


@pytest.fixture(scope="module")
def parse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parser")
    page = blocks.read(ROOT / "docs/recipes.md", "docs/recipes.md")
    (folder / "nvdsinfer_edgeprune.cpp").write_text(next(b.text for b in page if b.language == "cpp"))
    (folder / "nvdsinfer_custom_impl.h").write_text(HEADER)
    (folder / "call.cpp").write_text(CALL)
    command = ["g++", "-std=c++14", "-Wall", "-Werror", "-shared", "-fPIC", "-o", "parser.so", "call.cpp"]
    subprocess.run(command, cwd=folder, check=True)
    call = ctypes.CDLL(str(folder / "parser.so")).call
    call.argtypes = [ctypes.c_int, ctypes.c_void_p, *[ctypes.c_uint] * 4, ctypes.c_float, ctypes.c_void_p]

    def run(output, rows):
        output = np.ascontiguousarray(output, np.float32)
        out = np.zeros((max(output.shape), 6), np.float32)
        count = call(rows, output.ctypes.data, *output.shape, SIDE, CLASSES, LEAST, out.ctypes.data)
        return out[:count]

    return run


def clipped(boxes):
    boxes = boxes.astype(np.float32)
    boxes[:, :4] = boxes[:, :4].clip(0, SIDE)
    return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


@pytest.mark.needs("g++")
def test_the_parser_reads_the_raw_output(parse):
    random = np.random.default_rng(0)
    raw = np.concatenate([random.uniform(0, SIDE, (4, 2100)), random.random((CLASSES, 2100)) ** 3]).astype(np.float32)
    everything = detections([raw[None]], RAW, classes=CLASSES, conf=LEAST, iou=1.0, max_det=2100)
    expected = clipped(everything)
    found = parse(raw, rows=False)
    assert len(found) == len(expected) > 100
    found = found[np.argsort(-found[:, 4], kind="stable")]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.needs("g++")
def test_the_parser_reads_rows(parse):
    random = np.random.default_rng(1)
    rows = np.column_stack([random.uniform(0, 200, (300, 2)), random.uniform(200, 350, (300, 2)),
                            random.random(300), random.integers(0, CLASSES, 300)]).astype(np.float32)  # fmt: skip
    rows[200:] = 0  # like the empty rows at the end of a file's output with NMS
    expected = clipped(rows[rows[:, 4] >= LEAST])
    np.testing.assert_allclose(parse(rows, rows=True), expected, atol=1e-4)
    assert len(expected) > 50


@pytest.mark.parametrize("layout", [None, "uint8-nhwc"])
def test_the_configuration_is_written_for_stock_files_only(tmp_path, layout):
    page = blocks.read(ROOT / "docs/recipes.md", "docs/recipes.md")
    (tmp_path / "nvinfer.py").write_text(next(b.text for b in page if b.title == "nvinfer.py"))
    nms = {"conf": 0.25, "iou": 0.7, "max_det": 300}
    manifest = {"output": "raw", "classes": ["car", "person"], "nms": nms, **({"layout": layout} if layout else {})}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    done = subprocess.run([sys.executable, "nvinfer.py", "."], cwd=tmp_path, capture_output=True, text=True)
    if layout:
        assert done.returncode == 1 and "--input float32" in done.stderr
        assert not (tmp_path / "config_infer.txt").exists()
    else:
        written = (tmp_path / "config_infer.txt").read_text()
        assert done.returncode == 0 and "num-detected-classes=2\n" in written and "EdgepruneRaw" in written
