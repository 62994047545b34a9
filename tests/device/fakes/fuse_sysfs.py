"""A /sys with changing values and sensors that answer EAGAIN: a FUSE file system made from a description.

    /usr/bin/python3 fuse_sysfs.py MOUNTPOINT < description.json       (Debian's python3-fusepy; runs in the foreground)

description: {"files": {path: content}, "links": {path: target}}. A content is a text, or

    {"cycle": [a, b, …], "every_s": s}      the values in turn
    {"ramp": [start, per_second]}           an increasing integer
    "EAGAIN"                                the sensor is off
    {"eagain": [a_s, b_s], "else": content} off for a_s, on for b_s, repeatedly
    {"slow_s": s, "else": content}          answers late

Time starts with the mount. edgeprune contains none of this: the kernel asks as it would ask a real driver.
"""

import errno
import json
import stat
import sys
import time

from fusepy import FUSE, FuseOSError, Operations

BEGAN = time.monotonic()


def value(content):
    """The bytes that a read returns now."""
    now = time.monotonic() - BEGAN
    if content == "EAGAIN":
        raise FuseOSError(errno.EAGAIN)
    if isinstance(content, dict):
        if "eagain" in content:
            off, on = content["eagain"]
            return value("EAGAIN" if now % (off + on) < off else content["else"])
        if "slow_s" in content:
            time.sleep(content["slow_s"])
            return value(content["else"])
        if "cycle" in content:
            return value(content["cycle"][int(now / content["every_s"]) % len(content["cycle"])])
        start, slope = content["ramp"]
        return value(int(start + slope * now))
    return f"{content}\n".encode()


class Tree(Operations):
    """The file system, read-only."""

    def __init__(self, files, links):
        self.files = {f"/{path}": content for path, content in files.items()}
        self.links = {f"/{path}": target for path, target in links.items()}
        self.folders = {"/": set()}
        for path in [*self.files, *self.links]:
            while path != "/":
                parent, _, name = path.rpartition("/")
                parent = parent or "/"
                self.folders.setdefault(parent, set()).add(name)
                path = parent

    def getattr(self, path, fh=None):
        if path in self.folders:
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path in self.links:
            return {"st_mode": stat.S_IFLNK | 0o777, "st_nlink": 1, "st_size": len(self.links[path])}
        if path in self.files:
            return {"st_mode": stat.S_IFREG | 0o444, "st_nlink": 1, "st_size": 4096}  # as sysfs reports for every file
        raise FuseOSError(errno.ENOENT)

    def readlink(self, path):
        return self.links[path]

    def readdir(self, path, fh):
        return [".", "..", *sorted(self.folders[path])]

    def read(self, path, size, offset, fh):
        return value(self.files[path])[offset : offset + size]


if __name__ == "__main__":
    description = json.load(sys.stdin)
    tree = Tree(description["files"], description["links"])
    # direct_io: the kernel caches no old value.
    FUSE(tree, sys.argv[1], foreground=True, ro=True, direct_io=True)
