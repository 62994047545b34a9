import numpy as np
import pytest
from edgeprune_device import runtimes
from edgeprune_device.errors import InputError
from edgeprune_device.runtimes import RuntimeSettings

X = np.zeros((1, 3, 64, 64), np.float32)


def test_ort_runs_from_bytes_and_path(ort, tiny_onnx, tmp_path):
    (tmp_path / "a.onnx").write_bytes(tiny_onnx)
    for model in (tiny_onnx, tmp_path / "a.onnx", str(tmp_path / "a.onnx")):
        with runtimes.open(model, settings=RuntimeSettings(1)) as session:
            assert session.name == "ort" and session.input_shape == (1, 3, 64, 64)
            assert session.description == f"onnxruntime {ort.__version__}, CPUExecutionProvider, 1 thread"
            (dark,) = session.infer(X)
            (bright,) = session.infer(X + 1)
        assert dark.shape == (1, 6, 84) and dark.dtype == np.float32
        assert dark[0, 4, 0] == 0 and bright[0, 4, 0] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("asked", "policy", "spins"),
    [(None, None, False), (None, "passive", False), (None, " Active ", True), (True, "PASSIVE", True),
     (False, "ACTIVE", False)],
)  # fmt: skip
def test_threads_yield_unless_asked_to_spin(ort, tiny_onnx, monkeypatch, asked, policy, spins):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    with runtimes.open(tiny_onnx, "ort", RuntimeSettings(2, spinning=asked)) as session:
        options = session._session.get_session_options()
        entries = {options.get_session_config_entry(f"session.{pool}_op.allow_spinning") for pool in ("intra", "inter")}
        assert entries == {"1" if spins else "0"}
        assert session.spinning is spins
        assert session.description.endswith("2 threads" if spins else "2 threads, yielding")
    with runtimes.open(tiny_onnx, "ort", RuntimeSettings(1, spinning=asked)) as session:  # one thread waits for none
        assert session.spinning is None and session.description.endswith("1 thread")


def test_float16_input_is_converted_to_float32(ort, tiny_onnx):
    with runtimes.open(tiny_onnx) as session:
        assert session.infer(X.astype(np.float16))[0].shape == (1, 6, 84)


def test_closed_session_is_an_error(ort, tiny_onnx):
    session = runtimes.open(tiny_onnx)
    session.close()
    session.close()
    with pytest.raises(InputError, match="closed"):
        session.infer(X)


@pytest.mark.parametrize("model", [b"", b"not onnx", b"\0" * 100])
def test_damaged_model_is_refused_in_one_line(ort, model, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(model)
    with pytest.raises(InputError, match=r"bad\.onnx: cannot be loaded by onnxruntime") as caught:
        runtimes.open(tmp_path / "bad.onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="the model: cannot be loaded by onnxruntime"):
        runtimes.open(model)


def test_truncated_model_is_refused(ort, tiny_onnx):
    with pytest.raises(InputError):
        runtimes.open(tiny_onnx[: len(tiny_onnx) // 2])
