"""Pieces of a bundle, from standard input into the folder argv[1]: of each a line "NAME SIZE SHA256" and its bytes; the
answer is its name, once it lies there whole. With a second argument: what is there already, "NAME SHA256" a line.

Nothing is synced here: what a power cut spoils shows by its hash, and is sent again.
"""

import hashlib
import os
import re
import sys

NAME = r"envelope|[0-9a-f]{64}\.[0-9]{5}"
MOST_BYTES = 1 << 22


def held(folder):
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    for name in names:
        path = os.path.join(folder, name)
        if re.fullmatch(NAME, name) and os.path.getsize(path) <= MOST_BYTES:
            with open(path, "rb") as stream:
                print(name, hashlib.sha256(stream.read()).hexdigest())


def receive(folder, source):
    os.makedirs(folder, mode=0o755, exist_ok=True)
    for line in iter(lambda: source.readline(200), b""):
        found = re.fullmatch("(" + NAME + r") ([0-9]{1,7}) ([0-9a-f]{64})\n", line.decode("ascii", "replace"))
        if not found or int(found.group(2)) > MOST_BYTES:
            sys.exit("receive: not a piece")
        name, size, digest = found.groups()
        data = source.read(int(size))
        if len(data) < int(size):
            return  # the link broke
        if hashlib.sha256(data).hexdigest() != digest:
            sys.exit(f"receive: {name} came damaged")
        keep(os.path.join(folder, name), data)
        print(name, flush=True)


def keep(path, data):
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
