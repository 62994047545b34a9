import json
import re

import sysfs as boards
from edgeprune_device.trust import keys

from .calls import edgeprune


def test_info_of_this_machine(capsys, home):
    code, out, _ = edgeprune(capsys, "info", "--json")
    data = json.loads(out)
    assert (
        code == 0 and data["home"] == str(home) and data["own_key"] is None and data["runtimes"]["null"] == "available"
    )
    assert not home.exists()  # asking makes no key
    fingerprint = keys.fingerprint(keys.load_or_create().verify_key)
    code, out, _ = edgeprune(capsys, "info")
    assert code == 0 and fingerprint in out and re.search(r"^runtimes$", out, re.M)
    assert re.search(r"^  null +available$", out, re.M) and re.search(r"^  ort-cuda +\S", out, re.M)


def test_info_of_a_board(capsys, tmp_path, monkeypatch):
    name = "jetson-orin-nx, JetPack 6"
    monkeypatch.setenv("EDGEPRUNE_SYSROOT", str(boards.write(name, tmp_path / "board")))
    code, out, _ = edgeprune(capsys, "info", "--json")
    data = json.loads(out)
    assert code == 0 and "Orin NX" in data["board"]["model"] and data["board"]["l4t"] == "36.4.3"
    assert data["sensors"]["power.VDD_IN"] == {"value": 5250, "unit": "mW"}
    assert data["sensors"]["temperature.cv0"] == {"value": None, "unit": "C"}
    assert data["preflight"]["clocks"]["gpu"]["max_hz"] == 918000000 and "clocks are not locked" in data["warnings"][0]
    code, out, _ = edgeprune(capsys, "info")
    assert code == 0 and re.search(r"^  power\.VDD_IN +5250 mW$", out, re.M)
    assert re.search(r"^  temperature\.cv0 +no reading$", out, re.M)
    assert re.search(r"^  clock gpu +306 MHz, 306 to 918 MHz, not locked, nvhost_podgov$", out, re.M)


def test_info_of_a_bundle(capsys, bundle):
    code, out, _ = edgeprune(capsys, "info", str(bundle.path), "--json")
    assert code == 0 and json.loads(out)["manifest"] == json.loads(json.dumps(bundle.manifest.to_json()))
    code, out, _ = edgeprune(capsys, "info", str(bundle.path))
    assert "reason the accuracy gate failed" in out and bundle.sha256 in out
