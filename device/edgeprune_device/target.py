"""A target: the required contents of a bundle for one kind of device.

To add a target, add one file to `targets/`; its name is the option's value. A user's own file also works:
`--target ./my-drone.json`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

from edgeprune_device import schema, strict_json
from edgeprune_device.errors import InputError, reason
from edgeprune_device.files import check_file
from edgeprune_device.hint import unknown
from edgeprune_device.option import named

__all__ = ["JetPack", "Target"]

_FOLDER = Path(__file__).parent / "targets"


@dataclass(frozen=True)
class JetPack:
    """One software release of a Jetson, e.g. JetPack("6.1-6.2.2", "36.4-36.5", "10.3.0").

    Attributes:
        jetpack: Release of JetPack.
        l4t: Release of L4T; None: not known.
        tensorrt: Release of TensorRT.
    """

    jetpack: str
    l4t: Optional[str]
    tensorrt: str


@dataclass(frozen=True)
class Target:
    """The device for which a build is made.

    An example: Target.load("jetson-orin") has sm "8.7", channels in multiples of 8, and FP32, FP16, INT8 and INT8-FP16
    models.

    Attributes:
        name: Name, which is the option's value.
        title: Name for display.
        sm: CUDA compute capability as "major.minor", None if several or none apply.
        jetpacks: Software releases of the device.
        channel_multiple: Channel counts are rounded to a multiple of this.
        precisions: The models that the bundle must contain, of "fp32", "fp16", "int8", "int8-fp16".
        int8_activations: "signed" (zero point 0, the only form that TensorRT accepts) or "unsigned" (fast on a CPU).
        ahead_of_time: Compute capabilities, e.g. "SM86", for which TensorRT for RTX builds an engine into the bundle.
            Empty for a Jetson, for which such a build only checks that TensorRT's parser accepts the file.
        dla: Number of deep-learning accelerator cores.
        comment: Remark.
        schema_version: Version of the schema.
    """

    name: str
    title: str
    sm: Optional[str]
    jetpacks: Tuple[JetPack, ...]
    channel_multiple: int
    precisions: Tuple[str, ...]
    int8_activations: str
    ahead_of_time: Tuple[str, ...]
    dla: int
    comment: str = ""
    schema_version: int = 1

    @staticmethod
    def names() -> List[str]:
        """The targets that edgeprune includes, sorted."""
        return sorted(path.stem for path in _FOLDER.glob("*.json"))

    @classmethod
    def load(cls, name_or_path: Union[str, Path]) -> Target:
        """Load a target.

        Args:
            name_or_path: Name ("jetson-orin"), or path of a JSON file.

        Raises:
            InputError: The target is unknown, or its file is unreadable or malformed.
        """
        text = str(name_or_path)
        if text in cls.names():
            return cls.from_json(strict_json.loads((_FOLDER / f"{text}.json").read_bytes(), text), text)
        if not text.endswith(".json"):
            raise InputError(unknown(f"{named('target')}: unknown target", text, [*cls.names(), "a .json file"]))
        check_file(text)
        try:
            content = Path(text).read_bytes()
        except OSError as error:
            raise InputError(f"{text}: the target file cannot be read ({reason(error)})") from error
        return cls.from_json(strict_json.loads(content, text), text)

    @classmethod
    def from_json(cls, data: Dict[str, Any], what: str = "target") -> Target:
        """Read a target from a parsed JSON object.

        Args:
            data: The object.
            what: Start of the error message.

        Raises:
            InputError: The object does not fit the schema.
        """
        fields = dict(schema.check("target", data, what))
        fields["jetpacks"] = tuple(JetPack(**release) for release in fields["jetpacks"])
        for key in ("precisions", "ahead_of_time"):
            fields[key] = tuple(fields[key])
        if len(set(fields["precisions"])) != len(fields["precisions"]):
            raise InputError(f"{what}: precisions: duplicate entry")
        return cls(**fields)

    def to_json(self) -> Dict[str, Any]:
        """A JSON object that fits `schema/target.json`."""
        data = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}
