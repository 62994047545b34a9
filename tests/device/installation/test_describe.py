import pytest
from edgeprune_device.installation import describe, install, restart

from .installing import QUICK, quiet


@pytest.fixture(autouse=True)
def no_systemd(monkeypatch):
    monkeypatch.setattr(restart, "systemd_runs", lambda: False)


def test_where_nothing_is_installed_it_says_so(releases):
    found = describe.describe(releases)
    assert (found["current"], found["counter"], found["releases"], found["held"]) == (None, 0, [], [])
    assert found["problem"] is None and found["free_bytes"] > 0 and not found["systemd"]
    lines = describe.table(found).splitlines()
    assert lines[0] == f"{releases.root}: no releases" and lines[-1].startswith("service: ") and len(lines) == 2


def test_the_release_in_use_is_marked_and_a_bad_one_says_why(releases, make, unmeasured, service):
    bad, good = (install.install(releases, make(number), QUICK, quiet) for number in (1, 2))
    releases.mark(bad, "bad", "3 starts")
    found = describe.describe(releases)
    assert found["current"] == good.identity and found["counter"] == 2 and len(found["held"]) == 2
    head, first, second, counter, *_ = describe.table(found).splitlines()
    assert head.split()[:3] == ["release", "name", "state"]
    assert first.split()[:4] == ["*", good.identity, "tiny", "good"] and "fp32 by ort  1.0000" in first
    assert second.split()[:3] == [bad.identity, "tiny", "bad"] and second.endswith("3 starts")
    assert counter == "counter 2: nothing older is installed without --allow-older"
