"""Reads a data.yaml, as Ultralytics does: its classes, and the images of both splits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from edgeprune_device.errors import InputError, reason

from edgeprune.data.pictures import PICTURES, READABLE, UNREADABLE

__all__ = ["Description", "read"]

#: In a folder with more entries, at least one in a hundred must be an image: /proc and / have millions of files.
_MANY = 50_000
_MOST_CLASSES = 100_000
#: A larger file is refused, bytes: PyYAML reads only 100 kB a second.
_LARGEST = 4 << 20


@dataclass(frozen=True)
class Description:
    """The content of a data.yaml.

    Attributes:
        names: Class names, in the order of their numbers.
        named: Whether the file names the classes. If it only counts them, the names are Ultralytics' class_0, ….
        train: Training images, sorted as listed.
        val: Validation images, sorted as listed.
        keypoints: (count, dimensions) of pose labels; None for other labels.
    """

    names: tuple[str, ...]
    named: bool
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    keypoints: tuple[int, int] | None


def read(path: Path) -> Description:
    """Read a data.yaml and list the images of its splits.

    Raises:
        InputError: The file, an image folder or an image is missing, or a field is malformed.
    """
    content = _read_yaml(path)
    names = _names(path, content)
    _check_kind(path, content)
    try:
        roots = _roots(path, content)
        train, val = (_pictures(path, roots, content, key) for key in ("train", "val"))
    except OSError as error:  # for example a name that is too long, or a folder that may not be read
        what = _shown(str(error.filename)) if error.filename else "a path"
        raise InputError(f"{path}: {what}: cannot be read ({reason(error)})") from error
    except ValueError as error:  # a NUL or an incomplete character in the path
        raise InputError(f"{path}: invalid path in train:, val: or path: ({error})") from error
    return Description(names, content.get("names") is not None, train, val, _keypoints(path, content))


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a data.yaml")
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(
                f"{path}: not a data.yaml (found {path.stat().st_size / 1e6:.0f} MB, expected a short text file)"
            )
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from error
    utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = data.decode("utf-16" if utf16 else "utf-8", errors="replace")
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an invalid date or number
        problem = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: cannot be read as YAML: {problem}{_encoding(data, text)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a data.yaml (expected train:, val: and names:)")
    for key in ("names", "path", "train", "val", "validation"):
        if any("\ufffd" in str(value) for value in _plain_values(content.get(key))):
            raise InputError(f"{path}: {key}: cannot be read{_encoding(data, text)}")
    return content


def _encoding(data: bytes, text: str) -> str:
    """The end of the message about a file that is not UTF-8; empty if it is."""
    if "\ufffd" not in text:
        return ""
    line = text[: text.index("\ufffd")].count("\n") + 1
    return f" (line {line} is not UTF-8, perhaps Latin-1); save the file as UTF-8"


def _plain_values(value: object) -> Iterator[object]:
    """The texts and numbers of a value, one level deep: nested aliases in a few lines can expand to gigabytes."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return (v for v in values if isinstance(v, (str, int, float)))


def _shown(value: object) -> str:
    """A value for a message: shortened text, or only the type and length of a list or mapping, which may be huge."""
    if isinstance(value, (list, dict)):
        return f"a {'list' if isinstance(value, list) else 'mapping'} of {len(value)}"
    return _shortened(repr(value))


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}…"


def _names(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        numbered = {str(k): v for k, v in names.items() if isinstance(k, (int, str))}
        if set(numbered) != {str(i) for i in range(len(names))}:
            found = _shortened(", ".join(map(_shown, names)))
            raise InputError(f"{path}: names: invalid class numbers (found [{found}], expected 0, 1, … without gaps)")
        names = [numbered[str(i)] for i in range(len(names))]
    try:
        count = None if count is None else int(_shown(count).strip("'\"").removesuffix(".0"))
    except ValueError:
        raise InputError(f"{path}: nc: invalid value (found {_shown(count)}, expected the number of classes)") from None
    if names is None and count:
        if not 0 < count <= _MOST_CLASSES:
            raise InputError(f"{path}: nc: invalid value (found {count}, expected 1 to {_MOST_CLASSES:,} classes)")
        return tuple(f"class_{i}" for i in range(count))
    if isinstance(names, str) and re.match(r"\d+:\S", names):
        raise InputError(
            f"{path}: names: no space after a colon (found {_shown(names)}); write 0: name on a separate line for each "
            "class"
        )
    if names is not None and not isinstance(names, list):
        raise InputError(
            f"{path}: names: invalid value (found {_shown(names)}, expected a list or numbered lines); write 0: name "
            "on a separate line for each class"
        )
    if not names:
        raise InputError(f"{path}: names: missing or empty; add names: with one class per line")
    if any(isinstance(n, (list, dict, set, bytes)) for n in names):
        raise InputError(
            f"{path}: names: invalid name of a class (found {_shown(next(n for n in names if not isinstance(n, str)))})"
        )
    if count is not None and count != len(names):
        raise InputError(f"{path}: nc: not the number of names (found {count}, expected {len(names)}); remove nc:")
    return tuple(str(n) for n in names)


def _check_kind(path: Path, content: dict[str, Any]) -> None:
    if content.get("channels", 3) != 3:
        raise InputError(
            f"{path}: channels: unsupported value (found {_shown(content['channels'])}, expected 3 for RGB)"
        )


def _keypoints(path: Path, content: dict[str, Any]) -> tuple[int, int] | None:
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    whole = isinstance(shape, list) and len(shape) == 2 and all(isinstance(v, int) and 0 < v < 10_000 for v in shape)
    if not whole:
        raise InputError(f"{path}: kpt_shape: invalid value (found {_shown(shape)}, expected [keypoints, 2 or 3])")
    return shape[0], shape[1]


# -- the images --------------------------------------------------------------------------------------------------------
def _roots(path: Path, content: dict[str, Any]) -> list[Path]:
    """The folders to which the splits' paths may be relative, the one to use first.

    Ultralytics searches for a relative `path:` in the working folder, then in its `datasets_dir`. If neither has the
    images, the path is taken relative to the folder of the data.yaml.
    """
    root = content.get("path")
    if root is None:
        return [path.resolve().parent]
    if not isinstance(root, str) or "\0" in root:
        raise InputError(f"{path}: path: invalid value (found {_shown(root)}, expected a path)")
    try:
        root = Path(root).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: path: {_shown(content['path'])}: {error}") from error
    if root.is_absolute():
        return [root]
    from ultralytics.utils import DATASETS_DIR

    tried = [root.absolute(), Path(DATASETS_DIR) / root, path.resolve().parent / root]
    theirs = tried[0] if root.exists() else tried[1]
    ours = tried[2]
    entries = [e for key in ("train", _val(content)) for e in _listed(content.get(key)) if isinstance(e, str)]

    def lacks(place: Path) -> int:
        return sum(not _place(place, entry).exists() for entry in entries if "\0" not in entry)

    first = ours if lacks(theirs) and lacks(ours) < lacks(theirs) else theirs
    return list(dict.fromkeys([first.absolute(), *tried]))


def _val(content: dict[str, Any]) -> str:
    return "validation" if "val" not in content and "validation" in content else "val"


def _listed(entries: Any) -> list[Any]:
    return entries if isinstance(entries, list) else [entries] if entries else []


def _place(root: Path, entry: str) -> Path:
    place = root / entry
    if not place.exists() and entry.startswith("../"):
        place = root / entry[3:]  # as in Roboflow's exports; Ultralytics does the same
    return place


def _pictures(path: Path, roots: Sequence[Path], content: dict[str, Any], key: str) -> tuple[Path, ...]:
    entries = _listed(content.get(_val(content) if key == "val" else key))
    if not entries:
        raise InputError(f"{path}: {key}: missing; add the folder of the images")
    for entry in entries:
        if not isinstance(entry, str) or "\0" in entry:
            raise InputError(f"{path}: {key}: invalid value (found {_shown(entry)}, expected a path)")
    pictures: list[str] = []  # strings, because a hundred thousand Path objects are slow
    for entry in entries:
        # Resolved, as in Ultralytics: the labels of a linked folder are beside the link's target.
        try:
            place = _place(roots[0], entry).resolve()
        except RuntimeError as error:  # links that form a loop
            raise InputError(f"{path}: {key}: {_shown(entry)}: {error}") from error
        if place.is_dir():
            pictures += _below(place, f"{path}: {key}")
        elif place.suffix == ".txt" and place.is_file():
            pictures += _list(place)
        elif place.suffix.lower() in READABLE:
            pictures.append(str(place))
        else:
            raise InputError(
                f"{path}: {key}: no such folder of images or .txt list: {place}"
                f"{_looked(roots, content, entry)}{_hint(path, content)}"
            )
    if not pictures:
        raise InputError(
            f"{path}: {key}: no images in {_place(roots[0], entries[0])}{_looked(roots, content, entries[0])}"
        )
    missing = [p for p in pictures if not os.path.isfile(p)]
    if missing:
        raise InputError(
            f"{path}: {key}: {len(missing)} of {len(pictures)} images are missing, the first is {missing[0]}; correct "
            "the list or restore the images"
        )
    unreadable = [p for p in pictures if os.path.splitext(p)[1].lower() in UNREADABLE]
    if unreadable:
        raise InputError(
            f"{path}: {key}: {len(unreadable)} of {len(pictures)} images have an unsupported format, the first is "
            f"{unreadable[0]}; convert them to JPEG or PNG"
        )
    # Not resolve(): the labels of a linked image are beside the link, not beside its target.
    return tuple(map(Path, dict.fromkeys(map(os.path.abspath, pictures))))


def _below(folder: Path, what: str) -> list[str]:
    """The images in a folder and its subfolders, sorted. As in Ultralytics, links are followed, hidden files ignored.

    Raises:
        InputError: The folder is a virtual one, such as /proc, or has very many files but few images.
    """
    kernel = {os.stat(place).st_dev for place in ("/proc", "/sys", "/dev") if os.path.isdir(place)}
    kernel.discard(os.stat("/").st_dev)
    if os.stat(folder).st_dev in kernel:
        raise InputError(f"{what}: {folder} is a virtual folder of the kernel; give a folder of images")
    pictures: list[str] = []
    seen = 0
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(str(folder), ())]
    while waiting:
        place, above = waiting.pop()
        try:
            status = os.stat(place)
            number = (status.st_dev, status.st_ino)
            if number in above or status.st_dev in kernel:  # a link to a folder above would recurse forever
                continue
            entries = list(os.scandir(place))
        except OSError:  # Ultralytics uses glob, which also skips unreadable folders
            continue
        seen += len(entries)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if os.path.splitext(entry.name)[1].lower() in PICTURES:
                pictures.append(entry.path)
            elif _is_folder(entry):
                waiting.append((entry.path, (*above, number)))
        if seen > _MANY and seen > 100 * len(pictures):
            raise InputError(
                f"{what}: {folder} holds more than {_MANY:,} files but only {len(pictures):,} images; "
                "give the folder of the images"
            )
    return sorted(pictures, key=lambda picture: picture.split(os.sep))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _list(place: Path) -> Iterator[str]:
    """The images of a .txt list.

    A path that begins with `./` is relative to the list's folder. Other relative paths are relative to the working
    folder, as in Ultralytics, or to the list's folder if no such file exists.
    """
    for line in place.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines():
        path = Path(line.strip().replace("\0", ""))
        if path.suffix.lower() in PICTURES:
            yield str(place.parent / path if line.strip().startswith("./") or not path.exists() else path)


def _looked(roots: Sequence[Path], content: dict[str, Any], entry: str) -> str:
    """The end of the message about a missing entry: the value of `path:` and the searched folders."""
    if content.get("path") is None:
        return ""
    if Path(entry).is_absolute():
        return ""
    searched = ", ".join(str(root / entry) for root in roots)
    return f"; path: is {_shown(content['path'])}; searched: {searched}"


def _hint(path: Path, content: dict[str, Any]) -> str:
    if not content.get("download"):
        return ""
    hint = "; edgeprune does not run the download: script"
    if not re.fullmatch(r"[\w.-]+", path.name):  # a shown command must not contain an unsafe file name
        return hint
    run = f"from ultralytics.data.utils import check_det_dataset as c; c('{path.name}')"
    return f'{hint}; run the script with python -c "{run}"'
