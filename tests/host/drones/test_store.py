import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from edgeprune_device.errors import InputError, SignatureError
from edgeprune_device.trust import keys
from nacl.signing import SigningKey

from edgeprune.drones.store import Receipt, Store

sys.path.append(str(Path(__file__).parents[2] / "device"))
from fakes.reports import make_report

KEY = SigningKey(b"d" * 32)


def receipt(**change):
    fields = {
        "source": "drone", "device": "drone7", "collected_at": "2026-11-24T12:00:00Z",
        "measured_at": None, "measured_by": None,
    }  # fmt: skip
    return Receipt(**{**fields, **change})


def signed(number=0, key=KEY):
    return make_report(load_ms=float(number)).sign(key)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "reports")


def test_a_report_is_kept_once(store):
    data = signed().to_bytes()
    identity = store.put(data, receipt())
    assert identity == hashlib.sha256(data).hexdigest() and identity in store
    store.put(data, receipt(source="another"))
    (stored,) = store.entries()
    assert stored.id == identity and stored.receipt == receipt() and stored.read() == signed()


def test_reports_are_sorted_latest_first_by_the_hosts_clock(store):
    first = store.put(signed(1).to_bytes(), receipt(measured_at="2026-11-20T00:00:00Z"))
    second = store.put(signed(2).to_bytes(), receipt(measured_at="2026-11-23T00:00:00Z"))
    third = store.put(signed(3).to_bytes(), receipt(collected_at="2026-11-24T12:00:00Z"))
    assert [stored.id for stored in store.entries()] == [third, second, first]
    assert store.find(second[:8]).id == second
    for prefix, words in (
        ("abcde", "invalid report id"),
        ("0" * 12, "no report has this id"),
        ("x" * 8, "invalid report id"),
    ):
        with pytest.raises(InputError, match=words):
            store.find(prefix)


def test_a_changed_or_damaged_file_is_refused(store):
    identity = store.put(signed().to_bytes(), receipt())
    path = store.folder / f"{identity}.json"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SignatureError, match="damaged"):
        store.entries()[0].read()
    forged = replace(signed(), fps_end_to_end=999.0).to_bytes()
    name = hashlib.sha256(forged).hexdigest()
    (store.folder / f"{name}.json").write_bytes(forged)
    with pytest.raises(SignatureError, match="invalid signature"):
        store.find(name).read()


def test_a_lost_receipt_loses_no_report(store):
    identity = store.put(signed().to_bytes(), receipt())
    for text in ("", "{}", "[]", '{"source": 7}'):
        (store.folder / f"{identity}.receipt.json").write_text(text)
        assert store.entries()[0].receipt is None and store.entries()[0].read() == signed()


def test_an_unknown_devices_reports_wait_until_it_is_enrolled(store, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "home"))
    identity = store.put(signed().to_bytes(), receipt(device=None))
    assert store.entries() == [] and store.promote() == []
    keys.enrol("drone9", KEY.verify_key)
    assert store.promote() == [identity] and store.promote() == []
    (stored,) = store.entries()
    assert stored.receipt.device == "drone9" and not list((store.folder / "unknown").glob("*.json"))


def test_an_empty_store_has_no_entries(tmp_path):
    assert Store(tmp_path / "none").entries() == [] and not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="EDGEPRUNE_REPORTS"):
        Store(tmp_path / "file" / "x").put(signed().to_bytes(), receipt())


def test_a_second_copy_replaces_a_damaged_report(store):
    identity = store.put(signed().to_bytes(), receipt())
    for content in (b"", signed(1).to_bytes()):
        (store.folder / f"{identity}.json").write_bytes(content)
        assert identity not in store
        assert store.put(signed().to_bytes(), receipt()) == identity
        assert store.find(identity).read() == signed()
