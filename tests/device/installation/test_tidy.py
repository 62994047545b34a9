import json
import os

import pytest
from edgeprune_device.errors import GateError
from edgeprune_device.installation import install
from edgeprune_device.trust.bundle import Bundle

from .installing import QUICK, leftovers, quiet


def test_failed_releases_are_removed_except_the_last(releases, make, unmeasured, service):
    good = [install.install(releases, make(n), QUICK, quiet).identity for n in (1, 2)]
    service.sick = {3, 4, 5}
    for number in sorted(service.sick):
        with pytest.raises(GateError):
            install.install(releases, make(number), QUICK, quiet)
        assert [r.counter for r in releases.all()] == [number, 2, 1] and not leftovers(releases)
    assert [r.identity for r in releases.all()[1:]] == good[::-1] and releases.all()[0].reason == "seen with 5"


def test_old_releases_and_incomplete_uploads_are_removed(releases, make, unmeasured):
    for number in (1, 2, 3, 4):
        install.install(releases, make(number), QUICK, quiet)
        stale, fresh = (releases.root / "incoming" / name for name in ("a" * 64, "b" * 64))
        for folder in (stale, fresh):
            folder.mkdir(exist_ok=True)
        os.utime(str(stale), (1, 1))
    assert [r.counter for r in releases.all()] == [4, 3]
    install.install(releases, make(5), QUICK, quiet)
    assert [path.name[0] for path in (releases.root / "incoming").iterdir()] == ["b"]


def test_engines_without_a_release_are_removed(releases, make, unmeasured):
    onnx = Bundle.open(make(1)).payloads["model.fp32.onnx"].sha256
    folder = releases.root / "engines"
    folder.mkdir(parents=True)
    for name, sha256 in (("used", onnx), ("unused", "0" * 64)):
        (folder / f"{name}.plan").write_bytes(b"plan")
        (folder / f"{name}.json").write_text(json.dumps({"engine": {"onnx_sha256": sha256}}))
    (folder / "odd.json").write_text("{}")
    install.install(releases, make(1), QUICK, quiet)
    assert sorted(path.name for path in folder.iterdir()) == ["odd.json", "used.json", "used.plan"]
