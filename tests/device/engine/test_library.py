import sys

import pytest
from edgeprune_device.engine import library
from edgeprune_device.errors import RuntimeUnavailable
from fakes import fake_tensorrt as fake


def test_order_of_precisions_follows_from_features():
    assert library.order(fake.module("8.6.1")) == ("int8", "fp16", "fp32")
    assert library.order(fake.module("10.3.0")) == ("int8-fp16", "int8", "fp16", "fp32")
    assert library.order(fake.module("11.4.0.106")) == ("int8-fp16", "fp16", "int8", "fp32")


def test_missing_or_broken_library_gives_a_reason(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "TensorRT is not installed" in library.reason() and "--system-site-packages" in library.reason()
    monkeypatch.delitem(sys.modules, "tensorrt")
    for code, words in (
        ("raise ImportError('libnvinfer.so.8: cannot open shared object file')", "libnvinfer.so.8"),
        ("import numpy; numpy.nothing_of_this_name", "nothing_of_this_name"),
        ("import module_that_is_not_there", "module_that_is_not_there"),
    ):
        (tmp_path / "tensorrt.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(RuntimeUnavailable, match="cannot be loaded .*" + words):
            library.load()
        sys.modules.pop("tensorrt", None)
