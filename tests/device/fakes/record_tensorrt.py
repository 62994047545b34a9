"""Records the public API of NVIDIA's real Python bindings of TensorRT, from which `fake_tensorrt` is built.

    python tests/device/fakes/record_tensorrt.py tensorrt-bindings 8.6.1          # from PyPI, about 1 MB each
    python tests/device/fakes/record_tensorrt.py tensorrt-cu12-bindings 10.3.0
    python tests/device/fakes/record_tensorrt.py --installed tensorrt_rtx         # the module of this environment
    python tests/device/fakes/record_tensorrt.py --derive-8.5.2                   # after 8.6.1 is recorded

The wheels of the bindings contain no libnvinfer (which comes from NVIDIA's own index or from JetPack), so the required
shared libraries are created here as empty stubs, which suffice for importing and inspecting, not for calling. Needs
Linux on x86-64, gcc, readelf, and the Python version of the wheel.

8.5.2 is not on PyPI. Its API is that of 8.6.1 without members that NVIDIA's binding sources of release 8.5 do not
define (github.com/NVIDIA/TensorRT, python/src/infer/pyCore.cpp and python/src/parsers/pyOnnx.cpp, the source of the
lists below; of pyGraph.cpp only that 8.6 added ILayer.metadata).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The classes that the builder and the runner use, and those that they must not use.
CLASSES = [
    "Builder",
    "IBuilderConfig",
    "INetworkDefinition",
    "ILayer",
    "ITensor",
    "OnnxParser",
    "ParserError",
    "Runtime",
    "ICudaEngine",
    "IExecutionContext",
    "ILogger",
    "Logger",
    "IProgressMonitor",
    "ITimingCache",
    "IHostMemory",
]
ENUMS = [
    "BuilderFlag",
    "NetworkDefinitionCreationFlag",
    "MemoryPoolType",
    "DataType",
    "TensorIOMode",
    "LayerType",
    "ErrorCode",
    "TensorLocation",
    "ComputeCapability",
]
SYMBOLS = [
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
    "_ZN11nvuffparser15createUffParserEv",
    "_ZN14nvcaffeparser117createCaffeParserEv",
    "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
    "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi",
]

KEPT_IN_8_5 = {
    "Builder": "create_network max_batch_size platform_has_tf32 platform_has_fast_fp16 platform_has_fast_int8 "
    "max_DLA_batch_size num_DLA_cores gpu_allocator create_optimization_profile error_recorder create_builder_config "
    "build_engine build_serialized_network is_network_supported logger max_threads reset",
    "IBuilderConfig": "min_timing_iterations avg_timing_iterations int8_calibrator engine_capability "
    "max_workspace_size set_memory_pool_limit get_memory_pool_limit flags default_device_type DLA_core clear_flag "
    "set_flag get_flag quantization_flags clear_quantization_flag set_quantization_flag get_quantization_flag reset "
    "profile_stream add_optimization_profile set_calibration_profile get_calibration_profile "
    "num_optimization_profiles set_device_type get_device_type is_device_type_set reset_device_type can_run_on_DLA "
    "profiling_verbosity algorithm_selector set_tactic_sources get_tactic_sources create_timing_cache "
    "set_timing_cache get_timing_cache set_preview_feature get_preview_feature",
    "Runtime": "deserialize_cuda_engine DLA_core num_DLA_cores gpu_allocator error_recorder logger max_threads",
    "ICudaEngine": "num_bindings __len__ __getitem__ get_binding_name get_binding_index binding_is_input "
    "get_binding_shape get_binding_dtype has_implicit_batch_dimension max_batch_size num_layers serialize "
    "create_execution_context get_location create_execution_context_without_device_memory device_memory_size "
    "refittable name num_optimization_profiles engine_capability get_profile_shape get_profile_shape_input "
    "is_shape_binding is_execution_binding get_binding_bytes_per_component get_binding_components_per_element "
    "get_binding_format get_binding_format_desc get_binding_vectorized_dim num_io_tensors get_tensor_name "
    "get_tensor_mode is_shape_inference_io get_tensor_shape get_tensor_dtype get_tensor_location "
    "get_tensor_bytes_per_component get_tensor_components_per_element get_tensor_format get_tensor_format_desc "
    "get_tensor_vectorized_dim get_tensor_profile_shape error_recorder tactic_sources profiling_verbosity "
    "create_engine_inspector",
    "IExecutionContext": "execute execute_async execute_v2 execute_async_v2 debug_sync profiler engine name "
    "device_memory active_optimization_profile get_strides set_binding_shape get_binding_shape set_shape_input "
    "get_shape get_tensor_strides set_input_shape get_tensor_shape set_tensor_address get_tensor_address "
    "set_input_consumed_event get_input_consumed_event set_output_allocator get_output_allocator "
    "get_max_output_size temporary_allocator infer_shapes execute_async_v3 all_binding_shapes_specified "
    "all_shape_inputs_specified set_optimization_profile_async error_recorder enqueue_emits_profile "
    "report_to_profiler persistent_cache_limit nvtx_verbosity",
    "OnnxParser": "parse parse_with_weight_descriptors parse_from_file supports_operator supports_model num_errors "
    "get_error clear_errors",
}
GONE_FROM_8_5 = {
    "BuilderFlag": ("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "FP8"),
    "MemoryPoolType": ("TACTIC_DRAM",),
    "DataType": ("FP8",),
}


def surface(module, version: str, source: str) -> dict:
    """{"version", "source", "enums": {name: {member: value}}, "classes": {name: {member: signature or null}}}"""
    recorded = {"version": version, "source": source, "enums": {}, "classes": {}}
    for name in ENUMS:
        if hasattr(module, name):
            members = getattr(module, name).__members__
            recorded["enums"][name] = dict(sorted(((k, int(v)) for k, v in members.items()), key=lambda item: item[1]))
    for name in CLASSES:
        if hasattr(module, name):
            recorded["classes"][name] = dict(_members(getattr(module, name)))
    return recorded


def _members(kind):
    for name, value in sorted(vars(kind).items()):
        if name.startswith("_") and name not in ("__init__", "__len__", "__getitem__"):
            continue
        if kind.__name__ == "INetworkDefinition" and name.startswith("add_"):
            continue  # add_convolution and similar, which only the parser uses
        if type(value).__name__ in ("property", "getset_descriptor"):
            yield name, None
        elif callable(value) and not isinstance(value, type):
            line = (value.__doc__ or "").strip().split("\n")[0]
            yield name, re.sub(r"^\w+\(self: [\w.]+,? ?", "(", line) if re.match(r"\w+\(self", line) else "(...)"


def derive_8_5_2() -> dict:
    """Derive 8.5.2 from the recorded 8.6.1; see the module's docstring."""
    recorded = json.loads((HERE / "tensorrt-8.6.1.json").read_text())
    recorded["version"] = "8.5.2"
    recorded["source"] = "8.6.1's bindings without what NVIDIA/TensorRT's pyCore.cpp and pyOnnx.cpp of release 8.5 lack"
    for name, kept in KEPT_IN_8_5.items():
        members = recorded["classes"][name]
        missing = [member for member in kept.split() if member not in members]
        assert not missing, (name, missing)  # 8.6 removed nothing, so a missing name is a mistake in the list
        recorded["classes"][name] = {k: v for k, v in members.items() if k in kept.split() or k == "__init__"}
    del recorded["classes"]["ILayer"]["metadata"]
    for name, gone in GONE_FROM_8_5.items():
        for member in gone:
            del recorded["enums"][name][member]
    return recorded


def record(package: str, version: str) -> dict:
    """Download the wheel, make stubs of its libraries, import it in a separate process, and record its API."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "-q"]
        subprocess.run([*pip, "install", "--no-deps", "-t", folder, f"{package}=={version}"], check=True)
        return look(Path(folder), version, f"{package} {version} from PyPI")


def look(folder: Path, version: str, source: str) -> dict:
    """The API of the wheel unpacked in `folder`."""
    library = folder / "tensorrt_bindings" / "tensorrt.so"
    dynamic = subprocess.run(["readelf", "-d", str(library)], check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory() as stubs:
        code = Path(stubs) / "stub.c"
        code.write_text("".join(f"void* {name}(void) {{ return 0; }}\n" for name in SYMBOLS))
        for needed in sorted(set(re.findall(r"libnv[a-z_]+\.so\.[0-9]+", dynamic))):
            out = str(Path(stubs) / needed)
            subprocess.run(["gcc", "-shared", "-fPIC", "-o", out, str(code), f"-Wl,-soname,{needed}"], check=True)
        command = [sys.executable, __file__, "--from", str(library.parent), version, source]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, "LD_LIBRARY_PATH": stubs}
        )
    return json.loads(done.stdout)


def write(name: str, recorded: dict) -> None:
    """Write one member per line, so that a diff shows a change."""
    path = HERE / f"{name}-{recorded['version']}.json"
    path.write_text(json.dumps(recorded, indent=0, sort_keys=False) + "\n")
    print(path, path.stat().st_size)


def main(arguments) -> None:
    """See the module's docstring."""
    if arguments[0] == "--from":
        sys.path.insert(0, arguments[1])
        import tensorrt

        print(json.dumps(surface(tensorrt, *arguments[2:])))
    elif arguments[0] == "--installed":
        module = __import__(arguments[1])
        write(arguments[1], surface(module, module.__version__, f"{arguments[1]} {module.__version__} as installed"))
    elif arguments[0] == "--derive-8.5.2":
        write("tensorrt", derive_8_5_2())
    else:
        write("tensorrt", record(*arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
