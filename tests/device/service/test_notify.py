"""Tests of the messages from `edgeprune run` to systemd."""

import os
import socket
import sys
import time

import numpy as np
import pytest
from fakes.service import LIVE

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
needs_gstreamer = pytest.mark.needs("gst-launch-1.0")


@needs_gstreamer
@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_receives_ready_watchdog_and_status(root, serve, tmp_path, abstract):
    root.add("good", b"spin while loading", state="good")
    name = f"\0edgeprune-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name)
        listener.settimeout(30)
        env = {"NOTIFY_SOCKET": name.replace("\0", "@"), "WATCHDOG_USEC": "1000000"}
        with serve("--source", LIVE, env=env) as service:
            heard, times = [], []
            while "READY=1" not in heard:
                heard += listener.recv(4096).decode().split("\n")
                times.append(time.monotonic())
            assert service.until_running()
            assert heard.count("WATCHDOG=1") >= 4  # also while it loads, for four seconds
            assert np.diff(times).max() < 1
            assert any(text.startswith("STATUS=loading good, fp32 on ort") for text in heard)
            heard = []
            while "STATUS=running release" not in " ".join(heard):
                heard += listener.recv(4096).decode().split("\n")
            assert service.end() == 0
            while "STOPPING=1" not in heard:
                heard += listener.recv(4096).decode().split("\n")
            assert "READY=1" not in heard


def test_waiting_service_is_ready(root, folder, serve, tmp_path):
    root.add("good", b"ok", state="good")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(30)
        with serve("--source", "/nowhere", env={"NOTIFY_SOCKET": str(tmp_path / "notify")}):
            heard = []
            while "READY=1" not in heard:
                heard += listener.recv(4096).decode().split("\n")
    assert any(text.startswith("STATUS=waiting: /nowhere") for text in heard)
