"""Files, pipes and sockets as they fail in the field. The kernel's limit on file sizes stands for a full disk."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from edgeprune_device import schema
from edgeprune_device.errors import InputError
from edgeprune_device.service import sinks
from fakes.service import LIVE

needs_gstreamer = pytest.mark.needs("gst-launch-1.0")


def line(number, length=200):
    return b'{"frame": %06d, "x": "%s"}\n' % (number, b"x" * length)


def test_file_is_appended_to(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"before\n")
    sink = sinks.open(str(path), -1, lambda: None)
    assert [sink.write(line(i)) for i in range(3)] == [0, 0, 0]
    assert path.read_bytes() == b"before\n" + line(0) + line(1) + line(2)  # before it is closed
    sink.close()


def test_line_cut_off_by_a_power_cut_spoils_no_other(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(line(0) + line(1)[:20])
    sinks.open(str(path), -1, lambda: None).write(line(2))
    assert path.read_bytes().split(b"\n") == [line(0)[:-1], line(1)[:20], line(2)[:-1], b""]


def test_file_that_was_moved_away_is_created_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "_LOOK_S", 0.0)
    path = tmp_path / "lines"
    sink = sinks.open(str(path), -1, lambda: None)
    sink.write(line(0))
    path.rename(tmp_path / "lines.1")
    sink.write(line(1))
    assert (tmp_path / "lines.1").read_bytes() == line(0) and path.read_bytes() == line(1)
    path.unlink()
    tmp_path.chmod(0o500)
    if os.geteuid() != 0:
        assert sink.write(line(2)) == 1 and "permission denied" in sink.problem
    tmp_path.chmod(0o700)
    assert sink.write(line(3)) == 0 and path.read_bytes().endswith(line(3))


FULL = """
import os, resource, sys
from edgeprune_device.service import sinks
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
sink = sinks.open(sys.argv[1], -1, lambda: None)
lost = [sink.write(b"x" * 149 + b"\\n") for _ in range(12)]
print(lost, sink.problem)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(sink.write(b"last\\n"), sink.problem)
"""


@pytest.mark.parametrize("stdout", [False, True])
def test_disk_full_in_the_middle_of_a_line_keeps_whole_lines(tmp_path, stdout):
    """The limit on file sizes stands for the disk: the kernel writes a part of the line, then refuses."""
    path = tmp_path / "lines"
    code = FULL
    if stdout:
        code = (
            code.replace("sys.argv[1]", '"-"')
            .replace("print(", "print(file=sys.stderr, *(")
            .replace("sink.problem)", "sink.problem))")
        )
    with open(path, "wb") as stream:
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            stdout=stream if stdout else subprocess.PIPE,
            stderr=subprocess.PIPE if stdout else None,
            check=True,
        )
    printed = (done.stderr if stdout else done.stdout).decode().splitlines()
    assert printed[0].startswith(f"{[0] * 6 + [1] * 6} ") and printed[1] == "0 None"
    assert path.read_bytes() == (b"x" * 149 + b"\n") * 6 + b"last\n"


def test_standard_output_waits_for_its_reader_and_reports_it():
    read, write = os.pipe()
    beats = []
    sink = sinks.open("-", -1, lambda: beats.append(time.monotonic()), stdout=write)
    got = []

    def late():
        time.sleep(1.3)
        while sum(map(len, got)) < 200_013:
            got.append(os.read(read, 1 << 16))

    reader = threading.Thread(target=late)
    reader.start()
    assert sink.write(b"a" * 200_000 + b"\n") == 0  # more than a pipe holds
    assert sink.write(b"the next one") == 0
    reader.join()
    assert b"".join(got) == b"a" * 200_000 + b"\nthe next one" and len(beats) >= 1
    os.close(read)
    with pytest.raises(BrokenPipeError):
        sink.write(b"nobody")
    os.close(write)


def test_clients_get_whole_lines_and_a_slow_one_delays_no_other(tmp_path):
    text = f"unix:{tmp_path / 's'}"
    with sinks.listening(text) as listener:
        sink = sinks.open(text, os.dup(listener.fileno()), lambda: None)
        assert sink.write(line(0)) == 0  # no client is connected
        quick, slow, dead = (socket.socket(socket.AF_UNIX) for _ in range(3))
        for client in (quick, slow, dead):
            client.connect(str(tmp_path / "s"))
        until = time.monotonic() + 5
        while len(sink._clients) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        dead.close()
        got, count, lost, longest = [], 3000, 0, 0.0
        reader = threading.Thread(target=lambda: got.extend(quick.makefile("rb")))
        reader.start()
        for i in range(count):
            begin = time.monotonic()
            lost += sink.write(line(i, 2000))
            longest = max(longest, time.monotonic() - begin)
            time.sleep(0.0002)
        assert longest < 0.5 and len(sink._clients) == 2 and "too slowly" in (sink.problem or "too slowly")
        sink.close()
        reader.join(10)
        late = list(slow.makefile("rb"))
        assert got == [line(i, 2000) for i in range(count)]
        # It has lost whole lines. Its last line may be cut off where the connection was closed.
        assert 0 < len(late) < count and count - lost <= len(late) <= count - lost + 1
        assert all(part == line(int(part[10:16]), 2000) for part in late[:-1])
        quick.close()
        slow.close()


def test_slow_client_that_reads_again_gets_whole_lines(tmp_path):
    text = f"unix:{tmp_path / 's'}"
    with sinks.listening(text) as listener, socket.socket(socket.AF_UNIX) as client:
        sink = sinks.open(text, os.dup(listener.fileno()), lambda: None)
        client.connect(str(tmp_path / "s"))
        until = time.monotonic() + 5
        while not sink._clients and time.monotonic() < until:
            time.sleep(0.01)
        lost, got = [], b""
        for number in range(2000):
            if sink.write(line(number, 3000)):
                lost.append(number)
            if len(lost) == 5:
                break
        client.setblocking(False)
        for number in range(5000, 5003):
            while True:
                try:
                    got += client.recv(1 << 20)
                except BlockingIOError:
                    break
            assert sink.write(line(number, 3000)) == 0 or number == 5000  # the rest of a line goes first
        got += client.recv(1 << 20)
        received = got.splitlines(keepends=True)
        numbers = [int(part[10:16]) for part in received]
        assert received == [line(number, 3000) for number in numbers] and numbers[-2:] == [5001, 5002]
        assert len(lost) == 5 and not set(lost) & set(numbers)
        sink.close()


def test_number_of_clients_is_limited(tmp_path):
    text = f"unix:{tmp_path / 's'}"
    with sinks.listening(text) as listener:
        sink = sinks.open(text, os.dup(listener.fileno()), lambda: None)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(17)]
        for client in clients:
            client.connect(str(tmp_path / "s"))
            client.settimeout(5)
        refusal = clients[-1].recv(1000)
        assert (
            b"16 clients are connected already" in refusal and clients[-1].recv(1) == b""
        )  # the connection was closed
        assert (
            sink.write(line(7)) == 1 and "because 16 clients, the limit, are connected" in sink.problem
        )  # the refused one lost it
        assert sink.write(line(8)) == 0 and sink.problem is None
        assert [client.recv(1000) for client in clients[:-1]] == [line(7) + line(8)] * 16
        for client in clients:
            client.close()
        sink.close()


def test_clients_that_never_read_do_not_block_others(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "_STUCK_S", 0.2)
    text = f"unix:{tmp_path / 's'}"
    with sinks.listening(text) as listener:
        sink = sinks.open(text, os.dup(listener.fileno()), lambda: None)
        idle = [socket.socket(socket.AF_UNIX) for _ in range(16)]
        for client in idle:
            client.connect(str(tmp_path / "s"))
        until = time.monotonic() + 30
        while len(sink._clients) < 16 and time.monotonic() < until:
            time.sleep(0.01)
        while sink.write(line(1, 100_000)) < 16:  # until all their buffers are full
            assert time.monotonic() < until
        time.sleep(0.3)
        with socket.socket(socket.AF_UNIX) as late:
            late.connect(str(tmp_path / "s"))
            late.settimeout(5)
            time.sleep(0.3)
            sink.write(line(2))
            assert late.recv(1000) == line(2)
        for client in idle:
            client.close()
        sink.close()


def test_only_a_stale_socket_is_replaced(tmp_path):
    text = f"unix:{tmp_path / 's'}"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "s"))
    with sinks.listening(text):
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o660
        with pytest.raises(InputError, match="another program listens on this path"), sinks.listening(text):
            pass
        assert (tmp_path / "s").exists()
    assert not (tmp_path / "s").exists()
    (tmp_path / "s").write_text("mine")
    with pytest.raises(InputError, match="is not a socket"), sinks.listening(text):
        pass
    assert (tmp_path / "s").read_text() == "mine"
    (tmp_path / "s").unlink()
    (tmp_path / "s").symlink_to(tmp_path / "mine")
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="is not a socket"), sinks.listening(text):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_socket_taken_over_by_another_service_stays(tmp_path):
    text = f"unix:{tmp_path / 's'}"
    with sinks.listening(text):
        (tmp_path / "s").unlink()
        (tmp_path / "s").write_text("another's")
    assert (tmp_path / "s").read_text() == "another's"


def test_named_pipe_is_refused(tmp_path):
    os.mkfifo(str(tmp_path / "pipe"))
    with pytest.raises(InputError, match="is a pipe or a socket"):
        sinks.check(str(tmp_path / "pipe"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY  # the other test's limit has ended


@needs_gstreamer
def test_full_disk_is_reported_once_and_counted(root, serve):
    root.add("good", b"ok", state="good")
    with serve("--source", LIVE, "--output", "/dev/full") as service:
        service.until(lambda: service.status() and service.status()["lost_lines"] > 20)
        assert service.status()["state"] == "running" and service.status()["restarts"] == 0
        assert service.end() == 0
    assert service.words().count("detections are lost: no space left on device") == 1


@needs_gstreamer
def test_clients_of_the_socket_read_whole_lines_across_a_crash(root, serve, tmp_path):
    root.add("good", b"ok", state="good")
    path = tmp_path / "s"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()  # the file remains, as after a kill
    with serve("--source", LIVE, "--output", f"unix:{path}") as service:
        service.until_running()
        with socket.socket(socket.AF_UNIX) as client, client.makefile("r") as stream:
            client.connect(str(path))
            first = [schema.check("detections", json.loads(stream.readline()), "line") for _ in range(3)]
            assert [line["frame"] - first[0]["frame"] for line in first] == [0, 1, 2]
            os.kill(service.workers()[0], signal.SIGKILL)
            for line in stream:
                json.loads(line)
        with socket.socket(socket.AF_UNIX) as client, client.makefile("r") as stream:
            client.connect(str(path))  # possible at once, because the supervisor holds the listening socket
            assert json.loads(stream.readline())["frame"] > first[-1]["frame"]
        assert service.end() == 0
    assert not path.exists()
