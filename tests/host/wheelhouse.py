"""Wheels that contain only their requirements."""

import zipfile


def make_wheel(folder, name, *needs):
    path = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        lines = "".join(f"Requires-Dist: {need}\n" for need in needs)
        head = "Metadata-Version: 2.1\nName: {}\nVersion: {}\n".format(*name.split("-"))
        wheel.writestr(f"{name}.dist-info/METADATA", f"{head}{lines}\nRequires-Dist: not me\n")
    return path
