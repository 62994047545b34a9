"""receive: the drone's end accepts only valid pieces."""

import subprocess
import sys
from pathlib import Path

from edgeprune.drones.deploy import transfer


def test_receive_accepts_only_valid_pieces(tmp_path):
    script = str(Path(transfer.__file__).parents[1] / "bootstrap/receive.py")

    def receive(data):
        return subprocess.run([sys.executable, script, str(tmp_path / "in")], input=data, capture_output=True)

    name, good = "0" * 64 + ".00001", b"abc"
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    done = receive(f"{name} 3 {digest}\n".encode() + good)
    assert done.returncode == 0 and done.stdout == f"{name}\n".encode()
    assert (tmp_path / "in" / name).read_bytes() == good
    for words in (f"../{name} 3", f"{name}/x 3", f"{name} 9999999", f"{name} -3", f"{name} x", "x"):
        head = f"{words} {digest}"
        done = receive(f"{head}\n".encode() + good)
        assert done.returncode == 1 and b"not a piece" in done.stderr
    done = receive(f"{name[:-1]}2 3 {digest}\n".encode() + b"abd")
    assert done.returncode == 1 and b"damaged" in done.stderr
    done = receive(f"{name[:-1]}3 3 {digest}\n".encode() + b"ab")  # the link broke
    assert done.returncode == 0 and done.stdout == b""
    assert [path.name for path in (tmp_path / "in").iterdir()] == [name] and len(list(tmp_path.iterdir())) == 1
