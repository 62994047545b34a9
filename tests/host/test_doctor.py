import json

from edgeprune_device import cli


def test_doctor_prints_the_hosts_checks_after_the_devices(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EDGEPRUNE_SPOOL", str(tmp_path / "spool"))
    assert cli.main(["doctor", "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    names = list(checks)
    assert names.index("numpy") < names.index("torch")
    for name in ("torch", "Ultralytics", "onnx", "onnxsim", "ONNX Runtime"):
        assert checks[name]["state"] == "ok", checks[name]
    assert "torchvision" in checks["torch"]["found"]
    assert checks["enrolled drones"]["found"] == "none" and "edgeprune setup" in checks["enrolled drones"]["advice"]
