"""`edgeprune run` as a real process, and releases for it. Only the misbehaving models are fakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from edgeprune_device import schema
from edgeprune_device.releases import Release, Releases
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle

MISBEHAVING = Path(__file__).parent / "misbehaving"
LIVE = "videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=25/1"


class Root:
    """A root folder whose releases are made by hand in the form that `edgeprune install` leaves."""

    def __init__(self, path, manifest):
        path.mkdir()
        self.releases, self.path, self._manifest = Releases(path), path, manifest
        self._sequence = 0

    def add(self, name, model, state="trial", current=True):
        """A release of one model file."""
        self._sequence += 1
        beside = self.path.parent / f"{name}.epb"
        entry = {"payload": "model.onnx", "opset": 13}
        manifest = {**self._manifest, "name": name, "models": {"fp32": entry}, "engines": {}, "evaluation": None}
        bundle = Bundle.write(beside, manifest, {"model.onnx": model}, keys.load_or_create())
        release = Release(
            bundle_sha256=bundle.sha256,
            name=name,
            counter=self._sequence,
            key_fingerprint=bundle.key_fingerprint,
            trusted=True,
            installed="2026-11-24T12:00:00Z",
            sequence=self._sequence,
            state=state,
            runtime="ort",
        )
        folder = self.releases.folder(release)
        folder.mkdir(parents=True)
        os.replace(str(beside), str(folder / "bundle.epb"))
        self.releases.write(release)
        if current:
            self.releases.switch(release)
        return release

    def damage(self, release):
        """Change one byte of the release's bundle."""
        path = self.releases.folder(release) / "bundle.epb"
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(bytes(data))

    def state(self, release):
        return self.releases.get(release.identity).state

    def current(self):
        return self.releases.current().name


class Service:
    """`edgeprune run` with these arguments and the fake runtime, for the duration of the context."""

    def __init__(self, folder, *arguments, fake=True, env=None, stdout=None):
        self.folder = folder
        self.errors, self.output = folder / "stderr.txt", folder / "lines.jsonl"
        self._command = [sys.executable, "-m", "edgeprune_device", "run", *map(str, arguments)]
        self._env = {**os.environ, **(env or {})}
        if fake:
            self._env["PYTHONPATH"] = os.pathsep.join(
                [str(MISBEHAVING), *filter(None, [self._env.get("PYTHONPATH", "")])]
            )
        if "--root" in arguments:
            self.status_file = Path(arguments[arguments.index("--root") + 1]) / "run" / "status.json"
        self._stdout, self.process = stdout, None

    def __enter__(self):
        with open(self.errors, "ab") as errors, open(self.output, "ab") as output:
            self.process = subprocess.Popen(
                self._command, stdout=self._stdout or output, stderr=errors, stdin=subprocess.DEVNULL, env=self._env
            )
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        self.process.wait()

    def words(self):
        return self.errors.read_text(encoding="utf-8")

    def lines(self):
        """The whole lines, each checked against the published schema."""
        *lines, rest = self.output.read_text(encoding="ascii").split("\n")
        assert rest == ""
        return [schema.check("detections", json.loads(line), "line") for line in lines]

    def status(self):
        """The status, checked against its schema; None before the first one."""
        if not self.status_file.exists():
            return None
        return schema.check("status", json.loads(self.status_file.read_text(encoding="ascii")), "status")

    def until(self, condition, seconds=40):
        """Wait until the condition is true, and return its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            answer = condition()
            if answer:
                return answer
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s; status {self.status()}; output:\n{self.words()}")

    def until_running(self, name=None, releases=None, frames=1):
        """Wait for frames of that release, and return the status."""

        def there():
            now = self.status()
            good = now and now["pid"] == self.process.pid and now["state"] == "running" and now["frames"] >= frames
            return now if good and (name is None or releases.current().name == name) else None

        return self.until(there)

    def workers(self):
        """The processes whose parent is the service."""
        return children(self.process.pid)

    def end(self, number=signal.SIGTERM, seconds=15):
        """Send this signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


def children(pid):
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[1]) == pid and words[0] != "Z":
            pids.append(int(path.parent.name))
    return pids


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
