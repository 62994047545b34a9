import pytest
from edgeprune_device.installation import describe, install, restart

from .installing import QUICK, quiet


@pytest.fixture(autouse=True)
def no_systemd(monkeypatch):
    monkeypatch.setattr(restart, "systemd_runs", lambda: False)


def test_device_without_releases_is_described(releases):
    description = describe.describe(releases)
    assert (description["current"], description["counters"]) == (None, {})
    assert (description["releases"], description["held"]) == ([], [])
    assert description["problem"] is None and description["free_bytes"] > 0 and not description["systemd"]
    lines = describe.table(description).splitlines()
    assert lines[0] == f"{releases.root}: no releases" and lines[-1].startswith("service: ") and len(lines) == 2


def test_table_marks_the_release_in_use_and_gives_the_reason_of_a_bad_one(releases, make, unmeasured, service):
    bad, good = (install.install(releases, make(number), QUICK, quiet) for number in (1, 2))
    releases.mark(bad, "bad", "3 starts")
    description = describe.describe(releases)
    assert (
        description["current"] == good.identity
        and description["counters"] == {good.key_fingerprint: 2}
        and len(description["held"]) == 2
    )
    head, first, second, counter, *_ = describe.table(description).splitlines()
    assert head.split()[:3] == ["release", "name", "state"]
    assert first.split()[:4] == ["*", good.identity, "tiny", "good"] and "fp32 by ort  1.0000" in first
    assert second.split()[:3] == [bad.identity, "tiny", "bad"] and second.endswith("3 starts")
    assert counter == f"key {good.key_fingerprint}: counter 2; bundles with a lower counter need allow_older=True"
