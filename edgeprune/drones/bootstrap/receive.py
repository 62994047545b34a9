"""Receives the pieces of a bundle on standard input, and writes them into the folder argv[1].

A line "NAME SIZE SHA256" precedes the bytes of each piece. The script answers with the name once the piece is complete.
With a second argument it lists the pieces that it already has, one line "NAME SHA256" each. It syncs nothing: a piece
that a power cut damages has another hash and is sent again.
"""

import hashlib
import os
import re
import sys
from typing import BinaryIO

NAME = r"envelope|[0-9a-f]{64}\.[0-9]{5}"
MOST_BYTES = 1 << 22


def held(folder: str) -> None:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    for name in names:
        path = os.path.join(folder, name)
        if re.fullmatch(NAME, name) and os.path.getsize(path) <= MOST_BYTES:
            with open(path, "rb") as stream:
                print(name, hashlib.sha256(stream.read()).hexdigest())


def receive(folder: str, source: BinaryIO) -> None:
    os.makedirs(folder, mode=0o755, exist_ok=True)
    for line in iter(lambda: source.readline(200), b""):
        match = re.fullmatch("(" + NAME + r") ([0-9]{1,7}) ([0-9a-f]{64})\n", line.decode("ascii", "replace"))
        if not match or int(match.group(2)) > MOST_BYTES:
            sys.exit("receive: not a piece")
        name, size, digest = match.groups()
        data = source.read(int(size))
        if len(data) < int(size):
            return  # the link broke
        if hashlib.sha256(data).hexdigest() != digest:
            sys.exit(f"receive: {name} arrived damaged")
        keep(os.path.join(folder, name), data)
        print(name, flush=True)


def keep(path: str, data: bytes) -> None:
    beside = f"{path}.{os.getpid()}.part"
    try:
        with open(beside, "wb") as stream:
            stream.write(data)
        os.replace(beside, path)
    except OSError as error:
        if os.path.exists(beside):
            os.unlink(beside)
        sys.exit(f"{error.strerror}: {os.path.dirname(path)}")


try:
    if len(sys.argv) > 2:
        held(sys.argv[1])
    else:
        receive(sys.argv[1], sys.stdin.buffer)
except OSError as error:
    sys.exit(f"{error.strerror}: {error.filename or sys.argv[1]}")
