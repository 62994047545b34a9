"""Slow: measures the time of a transfer over a radio with delay, loss and rate, with TCP's CUBIC at both ends. The sshd
of the drone is this machine's own, because logins on an emulated CPU would distort the measurement."""

import os
import re
import subprocess
import time

import pytest
from edgeprune_device.trust.bundle import Bundle
from nacl.signing import SigningKey

from . import link as veth
from . import relay

SENDER = """
import sys, time
from pathlib import Path
from edgeprune.drones.deploy import transfer
from edgeprune.drones.ssh import Link
from edgeprune_device.trust.bundle import Bundle

bundle = Bundle.open(sys.argv[1], allow_untrusted=True)
with Link("root@drone") as link:
    link.connect()
    began = time.monotonic()
    pieces = transfer.pieces(bundle, ())
    transfer.send(link, bundle.path, pieces, "python3", sys.argv[2], connections=int(sys.argv[3]))
    took = time.monotonic() - began
    held = transfer.held(link, "python3", sys.argv[2])
    assert transfer.lacking(pieces, held) == []
    print(took)
"""
MANIFEST = {
    "name": "noise", "created": "2026-11-24T12:00:00Z", "edgeprune_version": "0.1.0", "target": "cpu", "classes": ["x"],
    "imgsz": [64, 64], "letterbox": {"pad": 114, "stride": 32}, "nms": {"conf": 0.25, "iou": 0.7, "max_det": 300},
    "output": "raw", "models": {}, "engines": {}, "evaluation": None, "lineage": {},
}  # fmt: skip
RATE_KBIT = 20_000


@pytest.fixture
def radio(_link, ground, tmp_path):
    """(the relay, the environment with which ssh uses it), with an sshd of this machine in the drone's name space."""
    key = tmp_path / "host"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (tmp_path / "known").write_text(f"radio {key.with_suffix('.pub').read_text()}")
    (tmp_path / "authorized").write_text(ground.public_key)
    (tmp_path / "config").write_text(
        f"Port 22\nListenAddress {relay.DRONE}\nHostKey {key}\nAuthorizedKeysFile {tmp_path}/authorized\nPidFile none\n"
        f"UsePAM no\nPermitRootLogin yes\nStrictModes no\nSetEnv HOME={tmp_path} PATH=/usr/bin:/bin\n"
    )
    os.makedirs("/run/sshd", exist_ok=True)
    far = relay.Relay(_link.ground, _link.drone)
    argv = _link.drone.enter("/usr/sbin/sshd", "-D", "-e", "-f", str(tmp_path / "config"))
    with open(tmp_path / "log", "wb") as log:
        sshd = subprocess.Popen(argv, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=veth.die_with_parent)
    deadline = time.monotonic() + 10
    while b"listening" not in (tmp_path / "log").read_bytes():
        assert time.monotonic() < deadline and sshd.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    options = f"-o HostName={relay.DRONE} -o HostKeyAlias=radio -o UserKnownHostsFile={tmp_path}/known"
    yield far, {"EDGEPRUNE_SSH": f"ssh {options}"}
    sshd.kill()
    sshd.wait()
    far.close()


@pytest.fixture
def transferred(radio, ground, tmp_path):
    """transferred(size, connections, **radio) -> (seconds, bytes of IP packets to the drone)."""
    far, env = radio

    def run(size_bytes, connections, **settings):
        path = Bundle.write(
            tmp_path / "noise.epb", MANIFEST, {"noise": os.urandom(size_bytes)}, SigningKey.generate()
        ).path
        far.set(rate_kbit=RATE_KBIT, **settings)
        before = far.carried()[0]
        argv = [ground.edgeprune_argv()[0], "-c", SENDER, str(path), str(tmp_path / "in"), str(connections)]
        done = ground.run(*argv, timeout=300, **env)
        assert done.returncode == 0 and re.fullmatch(r"[\d.]+\n", done.stdout), done.stderr
        return float(done.stdout), far.carried()[0] - before

    return run


@pytest.mark.slow
@pytest.mark.parametrize("delay_ms", [20, 40])
def test_transfer_with_two_percent_loss_takes_at_most_twice_the_ideal_time(transferred, delay_ms):
    """A round-trip time of 40 ms and of 80 ms. 20 MB at 20 Mbit/s ideally take 8 s."""
    took, _ = transferred(20_000_000, 16, delay_ms=delay_ms, jitter_ms=5, loss_percent=2)
    print(f"RTT {2 * delay_ms} ms: {took:.1f} s, {took / 8:.2f} times the ideal")
    assert took <= 2 * 8


@pytest.mark.slow
def test_single_connection_takes_much_longer(transferred):
    """Shows the use of several connections, and would reveal a radio that is better than intended."""
    took, _ = transferred(5_000_000, 1, delay_ms=20, jitter_ms=5, loss_percent=2)
    print(f"RTT 40 ms, one connection: {took:.1f} s for 5 MB, {took / 2:.2f} times the ideal")
    assert took > 3 * 2


@pytest.mark.slow
def test_several_connections_add_few_bytes(transferred):
    """3.3 MB, the size of an INT8 file, with a round-trip time of 40 ms and no loss; counts all IP packets."""
    _, sent = transferred(3_300_000, 16, delay_ms=20, jitter_ms=0, loss_percent=0)
    print(f"{sent / 3_300_000:.3f} times the file")
    assert sent <= 1.10 * 3_300_000
