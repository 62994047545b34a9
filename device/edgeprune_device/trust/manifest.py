"""The manifest of a bundle: its contents and their origin."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Mapping, Optional, Tuple

from edgeprune_device import layouts, schema
from edgeprune_device.errors import InputError

__all__ = ["Manifest", "Payload"]


@dataclass(frozen=True)
class Payload:
    """One file inside a bundle.

    Attributes:
        name: Name of the file.
        offset_bytes: Offset of the payload from the first byte after the manifest.
        size_bytes: Size.
        sha256: SHA-256 of the content, in hexadecimal digits.
    """

    name: str
    offset_bytes: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The manifest of a bundle.

    An example (shortened; `schema/manifest.json` describes all of it):

        name "demo", created "2026-11-22T23:40:00Z", target "jetson-orin", task "detect", classes ("car", "person"),
        imgsz (640, 640), letterbox {"pad": 114, "stride": 32}, nms {"conf": 0.25, "iou": 0.7, "max_det": 300},
        output "raw", models {"fp32": {"payload": "model.fp32.onnx", "opset": 17, "map50_95": 0.41},
        "fp16": {"payload": null, "reason": "the accuracy gate failed"}}, engines {}, evaluation {"payload":
        "evaluation.zip", "pictures": 80, "boxes": 719}, lineage {…}, payloads (Payload(…), …)

    Attributes:
        name: Name of the bundle.
        created: Time of the build, by the host's clock.
        edgeprune_version: Version of edgeprune that built it.
        target: Name of the target.
        classes: Names of the classes.
        imgsz: Network input (height, width), px.
        letterbox: {"pad": grey level of the padding, "stride": px}.
        nms: {"conf", "iou", "max_det"} of the detections.
        output: Meaning of the models' outputs: "raw", "best" or "end2end", see output.py.
        models: {precision: its payload, and the figures measured on the host, in [0, 1], null if not measured}. A null
            payload has a reason.
        engines: {name: a built engine, with its builder and its purpose}; payload null (or null itself) if there is
            none.
        evaluation: The evaluation set's payload and counts; None if there is none.
        lineage: Origin of the model, free JSON.
        payloads: The files, in their order.
        task: Name of the task (vision/tasks.py); a manifest without one is of detection.
        layout: Layout of the models' input, see layouts.py; a manifest without one has float32 NCHW.
        schema_version: Version of the manifest's schema.
        counter: Grows with each bundle that a host signs; a drone does not install a lower one of
            the same key unless asked to.
    """

    name: str
    created: str
    edgeprune_version: str
    target: str
    classes: Tuple[str, ...]
    imgsz: Tuple[int, int]
    letterbox: Mapping[str, int]
    nms: Mapping[str, Any]
    output: str
    models: Mapping[str, Mapping[str, Any]]
    engines: Mapping[str, Optional[Mapping[str, Any]]]
    evaluation: Optional[Mapping[str, Any]]
    lineage: Mapping[str, Any]
    payloads: Tuple[Payload, ...] = field(default=())
    task: str = "detect"
    layout: str = layouts.FLOAT32_NCHW
    schema_version: int = 1
    counter: int = 0

    @classmethod
    def from_json(cls, data: Dict[str, Any], what: str = "manifest") -> Manifest:
        """Read a manifest from a parsed JSON object.

        Args:
            data: The object.
            what: Start of the error message.

        Raises:
            InputError: The object does not fit the schema, or its payloads are inconsistent.
        """
        fields = dict(schema.check("manifest", data, what))
        fields["classes"], fields["imgsz"] = tuple(fields["classes"]), tuple(fields["imgsz"])
        fields["payloads"] = tuple(Payload(**entry) for entry in fields["payloads"])
        manifest = cls(**fields)
        manifest._check_payloads(what)
        return manifest

    def to_json(self) -> Dict[str, Any]:
        """A JSON object that fits `schema/manifest.json`."""
        data = asdict(self)
        data["classes"], data["imgsz"] = list(self.classes), list(self.imgsz)
        data["payloads"] = [asdict(entry) for entry in self.payloads]
        if self.layout == layouts.FLOAT32_NCHW:  # without it, the JSON of an installed manifest keeps its hash
            del data["layout"]
        return data

    @property
    def size_bytes(self) -> int:
        """Size of all payloads together."""
        return sum(entry.size_bytes for entry in self.payloads)

    def _check_payloads(self, what: str) -> None:
        names, folded, offset = set(), set(), 0
        for entry in self.payloads:
            if entry.name.lower() in folded:  # "A" and "a" are the same file on a USB stick and on some systems
                raise InputError(f"{what}: payloads: duplicate name {entry.name}")
            if entry.offset_bytes != offset:  # back to back: no unsigned gap, no overlap
                raise InputError(
                    f"{what}: payloads: wrong offset of {entry.name} (found {entry.offset_bytes}, expected {offset})"
                )
            names.add(entry.name)
            folded.add(entry.name.lower())
            offset += entry.size_bytes
        users: Dict[str, Optional[Mapping[str, Any]]] = {f"models.{name}": model for name, model in self.models.items()}
        users.update({f"engines.{name}": engine for name, engine in self.engines.items()})
        users["evaluation"] = self.evaluation
        for where, user in users.items():
            if user is not None and user["payload"] is not None and user["payload"] not in names:
                raise InputError(f"{what}: {where}: missing payload {user['payload']}")
            if user is not None and user["payload"] is None and not user.get("reason"):
                raise InputError(f"{what}: {where}: neither a payload nor a reason")
