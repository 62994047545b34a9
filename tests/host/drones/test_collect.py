"""collect: reports from a drone's spool over real SSH, and from a folder."""

import contextlib
import csv
import hashlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from edgeprune_device import cli, clock, strict_json
from edgeprune_device.errors import GateError
from edgeprune_device.reports.spool import Spool
from edgeprune_device.trust import keys
from nacl.signing import SigningKey

from edgeprune.drones import ssh
from edgeprune.drones.collect import Drone, ReportFolder, collect
from edgeprune.drones.store import Store

from ... import fuzz
from ..loopback import Drone as Board

sys.path.append(str(Path(__file__).parents[2] / "device"))
from fakes.reports import make_report, timing

needs_ssh = pytest.mark.needs("ssh", "sshd")
KEY = SigningKey(b"d" * 32)


def signed(number=0, key=KEY, samples=2, **change):
    times = timing(*(10 + i % 7 for i in range(samples)))
    return make_report(load_ms=float(number), stages={"infer": times, "end_to_end": times}, **change).sign(key)


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "host"))
    monkeypatch.setenv("EDGEPRUNE_REPORTS", str(tmp_path / "reports"))
    keys.enrol("drone7", KEY.verify_key)


@pytest.fixture
def store():
    return Store()


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    drone = Board(tmp_path_factory.mktemp("drone"), "/usr/bin:/bin")
    yield drone
    drone.close()


@pytest.fixture
def drone(board, monkeypatch):
    """The board with an empty spool."""
    monkeypatch.setenv("EDGEPRUNE_SSH", f"ssh -F {board.config}")
    monkeypatch.setattr(ssh, "time", types.SimpleNamespace(sleep=lambda seconds: None))
    board.proxy.budgets, board.proxy.silent, board.proxy.connections, board.proxy.carried = [None], False, 0, 0
    spool = Spool(board.home / ".local/state/edgeprune/spool")
    for entry in spool.entries():
        entry.path.unlink()
    board.spool = spool
    return board


def fetch(store, **options):
    with ssh.Link("drone", say=lambda text: None) as link:
        return collect(Drone(link), store, **options)


@needs_ssh
def test_waiting_reports_are_fetched_once_and_marked(drone, store):
    ids = {drone.spool.put(signed(i).to_bytes()) for i in range(3)}
    outcome = fetch(store)
    assert set(outcome.collected) == ids and set(outcome.collected.values()) == {"drone7"}
    assert {stored.id for stored in store.entries()} == ids
    assert all(entry.delivered for entry in drone.spool.entries()) and len(drone.spool.entries()) == 3
    assert fetch(store).collected == {} and len(store.entries()) == 3
    assert not list(store.incoming.iterdir())


@needs_ssh
def test_an_empty_or_absent_spool_is_no_error(drone, store):
    assert fetch(store).collected == {}


@needs_ssh
def test_a_lost_acknowledgement_is_repeated(drone, store):
    identity = drone.spool.put(signed().to_bytes())
    fetch(store)
    (entry,) = drone.spool.entries()
    entry.path.rename(drone.spool.folder / "pending" / entry.path.name)
    outcome = fetch(store)
    assert outcome.known == [identity] and not outcome.collected and len(store.entries()) == 1
    assert drone.spool.entries()[0].delivered


@needs_ssh
def test_a_repeatedly_broken_link_continues_where_it_stopped(drone, store):
    report = signed(samples=40_000)
    size = len(report.to_bytes())
    identity = drone.spool.put(report.to_bytes())
    drone.proxy.budgets = [size // 4] * 7 + [None]
    outcome = fetch(store)
    assert list(outcome.collected) == [identity] and store.find(identity).read() == report
    assert drone.proxy.connections > 3 and drone.proxy.carried < 2.5 * size


@needs_ssh
def test_the_true_time_is_known_until_the_drone_reboots(drone, store):
    now = clock.now()
    since = now["boottime_s"] / 2  # this machine may have booted minutes ago
    ago = {**now, "boottime_s": now["boottime_s"] - since}
    before = {**ago, "boot_id": "00000000-0000-0000-0000-000000000000"}
    timed = drone.spool.put(signed(1, clock=ago, created="1970-01-01T00:00:07Z").to_bytes())
    lost = drone.spool.put(signed(2, clock={**before, "synchronized": False}).to_bytes())
    trusted = drone.spool.put(signed(3, clock={**before, "synchronized": True}).to_bytes())
    fetch(store)
    receipts = {stored.id: stored.receipt for stored in store.entries()}
    when = time.mktime(time.strptime(receipts[timed].measured_at, "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert abs(time.time() - since - when) < 30 and "since the device's boot" in receipts[timed].measured_by
    assert receipts[lost].measured_at is None and receipts[lost].measured_by is None
    assert receipts[trusted].measured_at == "2026-11-22T23:40:00Z" and "synchronized" in receipts[trusted].measured_by


@needs_ssh
def test_a_report_of_an_unknown_device_is_stored_separately_and_stays_on_the_drone(drone, store):
    stranger = SigningKey(b"s" * 32)
    identity = drone.spool.put(signed(key=stranger).to_bytes())
    good = drone.spool.put(signed(1).to_bytes())
    outcome = fetch(store)
    assert outcome.unknown == {identity: keys.fingerprint(stranger.verify_key)} and list(outcome.collected) == [good]
    with pytest.raises(GateError, match="not enrolled here"):
        outcome.check()
    assert [stored.id for stored in store.entries()] == [good]
    assert [entry.id for entry in drone.spool.entries() if not entry.delivered] == [identity]
    keys.enrol("other", stranger.verify_key)
    outcome = fetch(store)
    assert outcome.collected == {identity: "other"} and not list((store.folder / "unknown").glob("*.json"))
    assert all(entry.delivered for entry in drone.spool.entries())


@needs_ssh
def test_trust_new_uses_the_devices_name_or_a_variant(drone, store):
    for number, seed in enumerate((b"s", b"t")):
        drone.spool.put(signed(number, key=SigningKey(seed * 32)).to_bytes())  # both report the name drone7
    names = set(fetch(store, trust_new=True).collected.values())
    assert len(names) == 2 and all(re.fullmatch(r"drone7-[0-9a-f]{8}", name) for name in names)
    assert dict(keys.enrolled().values())["drone7"] == KEY.verify_key  # the enrolled device keeps the name


@needs_ssh
def test_damaged_and_forged_reports_are_stored_separately_after_the_rest(drone, store):
    forged = {**signed(1).to_json(), "fps_end_to_end": 999.0}
    bad = drone.spool.put(strict_json.canonical(forged))
    broken = drone.spool.put(signed(2).to_bytes())
    (drone.spool.folder / "pending" / f"{broken}.json").write_bytes(b"{}")
    nothing = drone.spool.put(b"[]")
    good = drone.spool.put(signed(3).to_bytes())
    outcome = fetch(store)
    assert list(outcome.collected) == [good]
    assert set(outcome.damaged) == {f"{name}.json" for name in (bad, broken, nothing)}
    assert {path.name for path in (store.folder / "damaged").iterdir()} == set(outcome.damaged)
    with pytest.raises(GateError, match="invalid signature"):
        outcome.check()
    assert sum(entry.delivered for entry in drone.spool.entries()) == 1


@needs_ssh
def test_a_report_from_a_newer_edgeprune_stays_on_the_drone(drone, store):
    newer = {**signed().to_json(), "schema_version": 99, "what_nobody_knows_yet": 1}
    drone.spool.put(strict_json.canonical(newer))
    outcome = fetch(store)
    with pytest.raises(GateError, match="reports of a newer edgeprune: 1, not fetched; update edgeprune on this host"):
        outcome.check()
    assert not outcome.damaged and not drone.spool.entries()[0].delivered


@needs_ssh
def test_a_report_that_another_host_fetches_is_skipped(drone, store, monkeypatch):
    ids = sorted(drone.spool.put(signed(i).to_bytes()) for i in range(3))
    look = Drone.look

    def slowly(self):
        listing = look(self)
        (drone.spool.folder / "pending" / f"{ids[1]}.json").unlink()
        return listing

    monkeypatch.setattr(Drone, "look", slowly)
    outcome = fetch(store)
    assert sorted(outcome.collected) == [ids[0], ids[2]] and outcome.left == [f"{ids[1]}.json"]
    outcome.check()


@needs_ssh
def test_a_read_only_drone_delivers_all_reports_with_a_reason(drone, store):
    ids = {drone.spool.put(signed(i).to_bytes()) for i in range(25)}  # more than one acknowledgement covers
    (drone.spool.folder / "delivered").rmdir()
    (drone.spool.folder / "delivered").write_text("")
    try:
        for _ in range(2):
            outcome = fetch(store)
            with pytest.raises(GateError, match=r"reports not marked as delivered on the drone \(drone: mkdir"):
                outcome.check()
            assert {stored.id for stored in store.entries()} == ids
    finally:
        (drone.spool.folder / "delivered").unlink()
    assert set(fetch(store).known) == ids and all(entry.delivered for entry in drone.spool.entries())


class FakeLink:
    """A drone that lists `reports`, cannot read those in `bad`, and has lost those in `gone` to another host."""

    target = "drone"

    def __init__(self, reports, uptime="100.00", bad=(), gone=()):
        self.reports, self.uptime, self.bad, self.gone = reports, uptime, bad, gone

    def connect(self):
        pass

    def run(self, script, *arguments):
        if "boot_id" in script:
            lines = [f"{len(data)} {identity}.json" for identity, data in self.reports.items()]
            return "\n".join(["0" * 36, self.uptime, "/spool", *lines, ""]).encode()
        return b"" if any(identity in arguments[0] for identity in self.gone) else b"there"

    def get(self, remote, local, size_bytes, sha256):
        if sha256 in (*self.bad, *self.gone):
            raise ssh.RemoteError("drone: tail: error reading: Input/output error", 1, "")
        local.write_bytes(self.reports[sha256])


def listed(*reports):
    return {hashlib.sha256(report.to_bytes()).hexdigest(): report.to_bytes() for report in reports}


def test_an_unreadable_report_on_the_drone_is_reported_and_does_not_stop_the_rest(store):
    reports = listed(*(signed(i) for i in range(4)))
    bad, first, gone, last = reports
    outcome = collect(Drone(FakeLink(reports, bad=[bad], gone=[gone])), store)
    assert set(outcome.collected) == {first, last} and outcome.left == [f"{gone}.json"]
    assert list(outcome.damaged) == [f"{bad}.json"]
    with pytest.raises(GateError, match="Input/output error"):
        outcome.check()


def test_a_too_large_file_is_reported_and_not_fetched(store, monkeypatch):
    small, large = signed(1), signed(2, samples=400)
    monkeypatch.setattr(sys.modules["edgeprune.drones.collect"], "MOST_BYTES", len(small.to_bytes()) + 100)
    outcome = collect(Drone(FakeLink(listed(small, large))), store)
    assert len(outcome.collected) == 1 and re.search("too large for a report", *outcome.damaged.values())


class Watched(FakeLink):
    """It counts what is fetched from it."""

    def __init__(self, reports, **change):
        super().__init__(reports, **change)
        self.fetched = []

    def get(self, remote, local, size_bytes, sha256):
        self.fetched.append(sha256)
        super().get(remote, local, size_bytes, sha256)


def test_a_refused_report_is_not_fetched_again(store):
    stranger, forged = signed(1, key=SigningKey(b"s" * 32)), {**signed(2).to_json(), "fps_end_to_end": 999.0}
    reports = listed(stranger, signed(3))
    for data in (strict_json.canonical(forged), b"[]"):
        reports[hashlib.sha256(data).hexdigest()] = data
    link = Watched(reports)
    for fetched in (4, 4, 4):
        outcome = collect(Drone(link), store)
        assert len(link.fetched) == fetched and len(outcome.unknown) == 1 and len(outcome.damaged) == 2
        with pytest.raises(
            GateError, match="invalid signature" if outcome.collected else "remove .* to fetch the report"
        ):
            outcome.check()
    (identity,) = outcome.unknown
    keys.enrol("other", SigningKey(b"s" * 32).verify_key)
    assert collect(Drone(link), store).collected == {identity: "other"} and len(link.fetched) == 4
    for path in (store.folder / "damaged").iterdir():
        path.unlink()
    collect(Drone(link), store)
    assert len(link.fetched) == 6


def test_a_call_fetches_only_so_many_reports_that_are_refused(store, monkeypatch):
    module = sys.modules["edgeprune.drones.collect"]
    monkeypatch.setattr(module, "_MOST_REFUSED", 2)
    junk = {hashlib.sha256(data).hexdigest(): data for data in (b"[%d]" % i for i in range(10))}
    link = Watched({**junk, **listed(signed())})
    outcome = collect(Drone(link), store)
    assert len(link.fetched) == 3 and len(outcome.damaged) == 3 and outcome.unfetched == 8
    with pytest.raises(
        GateError, match="reports not fetched: 8, because too many before them were refused; collect again"
    ):
        outcome.check()
    for _ in range(3):
        outcome = collect(Drone(link), store)
    assert list(outcome.collected.values()) == ["drone7"] and len(link.fetched) == 11
    monkeypatch.setattr(module, "_MOST_REFUSED_BYTES", 20)
    large = {hashlib.sha256(data).hexdigest(): data for data in (b"[%30d]" % i for i in range(4))}
    assert collect(Drone(Watched(large)), store).unfetched == 3


def test_a_strangers_report_is_parsed_only_if_it_is_small(store, monkeypatch):
    stranger = SigningKey(b"s" * 32)
    large = [signed(samples=4000), signed(samples=4000, key=stranger)]
    monkeypatch.setattr(strict_json, "MEMORY_BYTES", 500_000)
    monkeypatch.setattr(strict_json.loads, "__defaults__", (500_000,))
    parsed, real = [], json.loads
    monkeypatch.setattr(
        strict_json.json, "loads", lambda text, **hooks: parsed.append(len(text)) or real(text, **hooks)
    )
    outcome = collect(Drone(FakeLink(listed(*large))), store)
    assert list(outcome.collected.values()) == ["drone7"] and len([size for size in parsed if size > 50_000]) == 1
    assert list(outcome.unknown.values()) == [keys.fingerprint(stranger.verify_key)] and not outcome.damaged
    keys.enrol("other", stranger.verify_key)
    assert list(collect(Drone(FakeLink(listed(large[1]))), store).collected.values()) == ["other"]


def test_the_size_of_separately_stored_reports_is_limited(store, monkeypatch):
    module = sys.modules["edgeprune.drones.store"]
    monkeypatch.setattr(module, "MOST_APART", 6)
    for number in range(8):
        store.put_damaged(b"x" * 100, f"{number}.json")
        os.utime(store.folder / "damaged" / f"{number}.json", (number, number))
    assert sorted(path.name for path in (store.folder / "damaged").iterdir()) == [f"{n}.json" for n in range(2, 8)]
    monkeypatch.setattr(module, "MOST_APART_BYTES", 1600)
    store.put_damaged(b"y" * 10_000, "large.json")  # of a large one its begin
    assert (store.folder / "damaged" / "large.json").stat().st_size == 100
    reports = [signed(number, key=SigningKey(b"s" * 32)) for number in range(5)]
    monkeypatch.setattr(module, "MOST_APART_BYTES", 2 * len(reports[0].to_bytes()) + 1500)
    collect(Drone(FakeLink(listed(*reports))), store)
    left = list((store.folder / "unknown").iterdir())
    assert sum(path.stat().st_size for path in left) <= module.MOST_APART_BYTES and len(left) >= 2


@pytest.mark.parametrize("uptime", ["999999999999", "nonsense", "-1", ""])
def test_a_false_uptime_gives_no_time(store, uptime):
    report = signed(clock={"boot_id": "0" * 36, "boottime_s": 1.0, "synchronized": False})
    collect(Drone(FakeLink(listed(report), uptime=uptime)), store)
    assert store.entries()[0].receipt.measured_at is None


@pytest.mark.parametrize("created", ["9998-01-01T00:00:00Z", "2026-13-01T00:00:00Z", "2026-01-01T25:00:00Z"])
def test_an_impossible_date_gives_no_time(store, created):
    report = signed(clock={"boot_id": "1" * 36, "boottime_s": 1.0, "synchronized": True}, created=created)
    collect(Drone(FakeLink(listed(report))), store)
    assert store.entries()[0].receipt.measured_at is None


@needs_ssh
def test_a_full_host_disk_leaves_all_reports_on_the_drone(drone, tmp_path):
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(where)]
    if subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        identity = drone.spool.put(signed(samples=40_000).to_bytes())
        small = Store(where / "reports")
        with pytest.raises(Exception, match="no space left"):
            fetch(small)
        assert small.entries() == [] and not drone.spool.entries()[0].delivered
        assert list(fetch(Store(tmp_path / "elsewhere")).collected) == [identity]
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


COLLECT = "import sys; from edgeprune_device.cli import main; sys.exit(main(['collect', 'drone']))"


@needs_ssh
def test_a_killed_and_repeated_collection_loses_and_duplicates_nothing(drone, store):
    ids = {drone.spool.put(signed(i, samples=4000).to_bytes()) for i in range(12)}
    rng = random.Random(3)
    for _ in range(6):
        command = [sys.executable, "-c", COLLECT]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.3 + rng.random() * 1.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = {stored.id for stored in store.entries()}
        gone = {entry.id for entry in drone.spool.entries() if entry.delivered}
        assert gone <= kept and all(stored.read() for stored in store.entries())
        assert {entry.id for entry in drone.spool.entries()} == ids
    fetch(store)
    assert {stored.id for stored in store.entries()} == ids == {e.id for e in drone.spool.entries() if e.delivered}


def test_a_usb_stick_is_read_and_not_changed(store, tmp_path):
    stick = tmp_path / "stick"
    stick.mkdir()
    report = signed(1)
    spool = Spool(tmp_path / "spool")
    identity = spool.put(report.to_bytes())
    spool.copy_pending(stick)
    (stick / "report.json").write_text(strict_json.pretty(signed(2).to_json()))  # by bench --report
    (stick / "again.json").write_text(strict_json.pretty(report.to_json()))
    (stick / "music.json").write_text("{}")
    (stick / "._hidden.json").write_text("?")
    os.mkfifo(stick / "pipe.json")
    (stick / "dangling.json").symlink_to(stick / "nowhere")
    before = sorted(path.name for path in stick.iterdir())
    outcome = collect(ReportFolder(stick), store)
    assert len(outcome.collected) == 2 and identity in outcome.collected and outcome.left == ["music.json"]
    outcome.check()
    assert sorted(path.name for path in stick.iterdir()) == before and len(store.entries()) == 2
    assert collect(ReportFolder(stick), store).collected == {}
    assert set(collect(ReportFolder(spool.folder), Store(tmp_path / "other")).collected) == {identity}  # a whole spool


def test_a_link_on_a_usb_stick_copies_no_file_of_this_host(store, tmp_path):
    stick, secret = tmp_path / "stick", tmp_path / "secret"
    stick.mkdir()
    secret.write_text("secret")
    (stick / f"{'a' * 64}.json").symlink_to(secret)
    outcome = collect(ReportFolder(stick), store)
    assert list(outcome.damaged) == [f"{'a' * 64}.json"] and not list((store.folder / "damaged").iterdir())


def test_an_unreadable_file_on_a_usb_stick_does_not_stop_the_rest(store, tmp_path):
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / "a.json").write_bytes(signed(1).to_bytes())
    bad = stick / f"{'0' * 64}.json"
    bad.symlink_to("/proc/self/mem")  # a regular file whose first byte is an input/output error
    outcome = collect(ReportFolder(stick), store)
    assert len(outcome.collected) == 1 and "cannot be read (input/output error)" in outcome.damaged[bad.name]


def test_names_on_a_usb_stick_do_not_move_the_cursor(capsys, tmp_path):
    for name in ("a\x1b[2J.json", "b\x1b]0;x\x07.json"):
        (tmp_path / name).write_text("[]")
    (tmp_path / "c\x1b[2J.json").write_bytes(strict_json.canonical({**signed().to_json(), "load_ms": 7.0}))
    code, out, err = edgeprune(capsys, "collect", str(tmp_path))
    assert code == 1 and "skipped" in err and "invalid signature" in err and "\x1b" not in out + err


def test_the_csv_contains_no_formula_from_a_device(capsys, tmp_path, store):
    bundle = {**make_report().to_json()["bundle"], "name": "=cmd|' /C calc'!A0"}
    (tmp_path / "r.json").write_bytes(signed(bundle=bundle).to_bytes())
    collect(ReportFolder(tmp_path), store)
    assert edgeprune(capsys, "reports", "--csv", str(tmp_path / "r.csv"))[0] == 0
    (row,) = csv.DictReader((tmp_path / "r.csv").open())
    assert row["bundle"] == "'=cmd|' /C calc'!A0" and row["delta"] == "-0.02"


def test_compare_reads_the_store_even_if_a_folder_is_named_reports(capsys, tmp_path, store, monkeypatch):
    (tmp_path / "r.json").write_bytes(signed().to_bytes())
    collect(ReportFolder(tmp_path), store)
    monkeypatch.chdir(tmp_path)
    assert (tmp_path / "reports").is_dir()
    code, out, _ = edgeprune(capsys, "compare", "reports")
    assert code == 0 and "signed by drone7" in out


def edgeprune(capsys, *args):
    code = cli.main(list(args))
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_collect_reports_and_compare_show_the_report(capsys, tmp_path, store):
    code, out, _ = edgeprune(capsys, "reports")
    assert code == 0 and "no reports in" in out
    stick = tmp_path / "stick"
    stick.mkdir()
    power = {"idle_mw": 1.0, "load_mw": 2.0, "mj_per_frame_gross": 62.5, "mj_per_frame_net": 3.0, "samples": 9}
    whole = {"source": "VDD_IN", "whole_module": True, **power, "rails": {}}
    spool = Spool(tmp_path / "spool")
    identity = spool.put(signed(1, power=whole).to_bytes())
    spool.copy_pending(stick)
    code, out, _ = edgeprune(capsys, "collect", str(stick))
    assert code == 0 and f"{identity[:12]}  drone7" in out and "1 collected from the folder" in out
    code, out, _ = edgeprune(capsys, "collect", str(stick), "--json")
    assert code == 0 and json.loads(out)["known"] == [identity]
    table = tmp_path / "reports.csv"
    code, out, _ = edgeprune(capsys, "reports", "--csv", str(table))
    assert code == 0 and re.search(rf"^{identity[:12]} +drone7 ", out, re.M) and "62.50" in out and "degraded" in out
    (row,) = csv.DictReader(table.open())
    assert row["id"] == identity and row["mJ/frame"] == "62.5" and row["delta"] == "-0.02" and row["e2e p99 ms"] == ""
    code, out, _ = edgeprune(capsys, "compare", identity[:8])
    assert code == 0 and f"{identity[:12]}:fp32 *" in out and "signed by drone7" in out and "degraded" in out
    code, again, _ = edgeprune(capsys, "compare", "reports")
    assert code == 0 and again == out
    code, _, err = edgeprune(capsys, "compare", "0123456789")
    assert code == 2 and "no report has this id" in err
    (store.folder / f"{identity}.json").write_text("{}")
    code, out, err = edgeprune(capsys, "reports")
    assert code == 1 and "damaged" in err


def test_compare_names_the_signer_and_refuses_changed_reports(capsys, tmp_path):
    file = tmp_path / "r.json"
    file.write_text(strict_json.pretty(make_report().to_json()))
    code, out, _ = edgeprune(capsys, "compare", str(file))
    assert code == 0 and "NOT SIGNED" in out
    file.write_text(strict_json.pretty(signed(key=SigningKey(b"s" * 32)).to_json()))
    code, out, _ = edgeprune(capsys, "compare", str(file))
    assert code == 0 and "not enrolled here" in out
    file.write_text(strict_json.pretty({**signed().to_json(), "fps_end_to_end": 999.0}))
    code, _, err = edgeprune(capsys, "compare", str(file))
    assert code == 1 and "invalid signature" in err


@pytest.mark.parametrize("source, words", [("./nowhere", "no such folder"), ("-oProxyCommand=x", "not a drone")])
def test_invalid_sources_are_refused(capsys, source, words):
    code, _, err = edgeprune(capsys, "collect", "--", source)
    assert code == 2 and words in err and len(err.splitlines()) == 1


def test_missing_ssh_is_one_line(capsys, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_SSH", os.devnull)
    code, _, err = edgeprune(capsys, "collect", "drone")
    assert code == 2 and len(err.splitlines()) == 1


# --- any listing ----------------------------------------------------------------------------------------------------


@fuzz.counts(1000, 100_000)
def test_any_listing_of_a_drone_is_read_or_refused_in_one_line(count):
    """Only names that are hashes are fetched, so that no name leads out of a folder here or there."""

    def attempt(mutant):
        link = types.SimpleNamespace(target="drone", connect=lambda: None, run=lambda script: mutant)
        waiting, moment = Drone(link).look()
        assert moment.within_s >= 0 and (moment.boottime_s is None or moment.boottime_s >= 0)
        for item in waiting:
            assert re.fullmatch(r"[0-9a-f]{64}\.json", item.name) and item.id in item.name and item.size_bytes >= 0

    names = "".join(f"{900 + i} {hashlib.sha256(b'%d' % i).hexdigest()}.json\n" for i in range(3))
    good = f"9a6ab2de-75b5-4a05-9ea6-1d1c0e4dbd5a\n1234.56\n/home/pilot/.local/state/edgeprune/spool\n{names}"
    result = fuzz.run(attempt, fuzz.of_bytes(good.encode(), count))
    assert result["accepted"] and result["refused"]


@fuzz.counts(100, 10_000)
def test_any_name_on_a_stick_ends_the_command_with_one_line_at_most(count, tmp_path, monkeypatch):
    """The file is no report, a damaged report or an intact one; the intact report beside it is always kept."""
    stick = tmp_path / "stick"
    stick.mkdir()
    kept, other = signed(1).to_bytes(), signed(2).to_bytes()
    (stick / f"{hashlib.sha256(kept).hexdigest()}.json").write_bytes(kept)
    contents = {b"none": b"{}", b"spoiled": other.replace(b'"load_ms":2', b'"load_ms":3'), b"intact": other}
    assert contents[b"spoiled"] != other
    number = iter(range(10**9))

    def attempt(mutant):
        name = mutant.translate(None, b"/\0")[:250] + b".json"
        path = os.path.join(os.fsencode(stick), name)
        content = list(contents.values())[next(number) % 3]
        monkeypatch.setenv("EDGEPRUNE_REPORTS", str(tmp_path / "reports" / str(next(number))))
        with open(path, "xb") as stream:
            stream.write(content)
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))  # as strict as a terminal
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = cli.main(["collect", str(stick), *(["--json"] if len(mutant) % 2 else [])])
        finally:
            os.unlink(path)
        err.seek(0)
        lines = [line for line in err.read().splitlines() if line.startswith("edgeprune: error:")]
        assert code in (0, 1) and len(lines) == code, (code, lines)
        assert hashlib.sha256(kept).hexdigest() in Store()
        if code:
            raise GateError(lines[0])

    result = fuzz.run(attempt, fuzz.of_bytes(hashlib.sha256(other).hexdigest().encode(), count))
    assert result["accepted"] and result["refused"]
