"""`edgeprune run` as a real process, and releases for it to run. The misbehaving models are fakes, the rest is not."""

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
    """A root folder whose releases are made by hand, as `edgeprune install` leaves them."""

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
        )
        folder = self.releases.folder(release)
        folder.mkdir(parents=True)
        os.replace(str(beside), str(folder / "bundle.epb"))
        self.releases.write(release)
        if current:
            self.releases.switch(release)
        return release

    def damage(self, release):
        """One byte of its bundle is another one."""
        path = self.releases.folder(release) / "bundle.epb"
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(bytes(data))

    def state(self, release):
        return self.releases.get(release.identity).state

    def current(self):
        return self.releases.current().name


class Service:
    """Runs while the context lasts. `edgeprune run` with these arguments, in an environment with the fake runtime."""

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
        """Whole lines, each checked against the published schema."""
        *lines, rest = self.output.read_text(encoding="ascii").split("\n")
        assert rest == ""
        return [schema.check("detections", json.loads(line), "line") for line in lines]

    def status(self):
        """Checked too; None before the first."""
        if not self.status_file.exists():
            return None
        return schema.check("status", json.loads(self.status_file.read_text(encoding="ascii")), "status")

    def until(self, condition, seconds=40):
        """The condition's value, as soon as it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = condition()
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s; status {self.status()}; it said:\n{self.words()}")

    def until_running(self, name=None, releases=None, frames=1):
        """The status, once frames come, of that release."""

        def there():
            now = self.status()
            good = now and now["pid"] == self.process.pid and now["state"] == "running" and now["frames"] >= frames
            return now if good and (name is None or releases.current().name == name) else None

        return self.until(there)

    def workers(self):
        """Processes whose parent is the service."""
        return children(self.process.pid)

    def end(self, number=signal.SIGTERM, seconds=15):
        """Its exit code after this signal."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


def children(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[1]) == pid and words[0] != "Z":
            found.append(int(path.parent.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
