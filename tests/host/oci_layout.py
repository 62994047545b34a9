"""Hand-made OCI layouts, one with a small system."""

import gzip
import hashlib
import io
import json
import tarfile

from . import drone_root

MANIFEST, INDEX = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


class Base:
    """A hand-made OCI layout, built blob by blob."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "blobs/sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self.layers, self.ids = [], []

    def blob(self, data, kind):
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    def layer(self, entries, packed=True):
        """entries: {path: bytes | ("link", target) | ("hard", target) | None for a folder}"""
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, content in entries.items():
                info = tarfile.TarInfo(name)
                info.mode = 0o755
                if content is None:
                    info.type = tarfile.DIRTYPE
                elif isinstance(content, tuple):
                    info.type = tarfile.SYMTYPE if content[0] == "link" else tarfile.LNKTYPE
                    info.linkname = content[1]
                else:
                    info.size = len(content)
                archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
        plain = stream.getvalue()
        self.ids.append(f"sha256:{hashlib.sha256(plain).hexdigest()}")
        self.layers.append(
            self.blob(gzip.compress(plain[:700]) + gzip.compress(plain[700:]), f"{LAYER}+gzip")
            if packed
            else self.blob(plain, LAYER)
        )
        return self

    def image(self, architecture="arm64", user=None, **config):
        runs = {"Cmd": ["/bin/sh"], "Env": ["A=1"], **({"User": user} if user else {})}
        made = {"architecture": architecture, "os": "linux", "config": runs,
                "rootfs": {"type": "layers", "diff_ids": self.ids}, **config}  # fmt: skip
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": self.layers,
                    "config": self.blob(made, "application/vnd.oci.image.config.v1+json")}  # fmt: skip
        return {**self.blob(manifest, MANIFEST), "platform": {"architecture": architecture, "os": "linux"}}

    def index(self, *manifests):
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": list(manifests)}))
        return self.folder


SYSTEM = {
    "etc/passwd": drone_root.PASSWD.encode(),
    "usr/bin/python3.10": drone_root.program("3.10.12"),
    "usr/bin/python3": ("link", "python3.10"),
    "lib": ("link", "usr/lib"),
    "usr/lib/aarch64-linux-gnu/libc.so.6": b"GNU C Library (Ubuntu GLIBC 2.35) stable release version 2.35.\n",
}
