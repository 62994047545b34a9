"""The manifest of a bundle: what is in it, and from what it was made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple

from edgeprune_device import output, schema
from edgeprune_device.errors import InputError

__all__ = ["Manifest", "Payload"]


@dataclass(frozen=True)
class Payload:
    """One file inside a bundle; the offset counts from the first byte after the manifest."""

    name: str
    offset_bytes: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """E.g. (shortened; the whole is `schema/manifest.json`)

        name "demo", created "2026-11-22T23:40:00Z", target "jetson-orin", task "detect", classes ("car", "person"),
        imgsz (640, 640), letterbox {"pad": 114, "stride": 32}, nms {"conf": 0.25, "iou": 0.7, "max_det": 300},
        output "raw", models {"fp32": {"payload": "model.fp32.onnx", "opset": 17, "map50_95": 0.41},
        "fp16": {"payload": null, "reason": "the accuracy gate failed"}}, engines {}, evaluation {"payload":
        "evaluation.zip", "pictures": 80, "boxes": 719}, lineage {…}, payloads (Payload(…), …)

    - `imgsz`: network input (height, width), px
    - `output`: what the models' output means: "raw" or "end2end", see output.py
    - `models[precision]`: figures measured on the host, in [0, 1], null where not measured; payload null with a reason
    - `engines[name]`: a built engine, with its builder and what it is for; payload null (or null itself) if none
    - `lineage`: where the model comes from, free JSON
    - `counter`: grows with each bundle that a host signs; a drone does not go back to a lower one by itself
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
    schema_version: int = 1
    counter: int = 0

    @classmethod
    def from_json(cls, data: dict, what: str = "manifest") -> Manifest:
        """From a parsed JSON object; `what` begins the InputError."""
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
        return data

    @property
    def shapes(self) -> Tuple[Tuple[int, ...], List[Tuple[int, ...]]]:
        """(input shape, output shapes) of the model, for runtimes that do not read it."""
        height, width = self.imgsz
        anchors = sum((height // s) * (width // s) for s in (8, 16, 32))
        return (1, 3, height, width), [output.shape_of(self.output, len(self.classes), anchors)]

    @property
    def size_bytes(self) -> int:
        """All payloads together."""
        return sum(entry.size_bytes for entry in self.payloads)

    def _check_payloads(self, what: str) -> None:
        names, folded, offset = set(), set(), 0
        for entry in self.payloads:
            if entry.name.lower() in folded:  # "A" and "a" are one file on a stick, and on other systems
                raise InputError(f"{what}: payloads: {entry.name} stands twice")
            if entry.offset_bytes != offset:  # back to back: no gap that nothing covers, no overlap
                raise InputError(f"{what}: payloads: {entry.name} must begin at {offset}, not {entry.offset_bytes}")
            names.add(entry.name)
            folded.add(entry.name.lower())
            offset += entry.size_bytes
        entries = [("models." + k, v) for k, v in self.models.items()]
        entries += [("engines." + k, v) for k, v in self.engines.items()]
        for where, entry in [*entries, ("evaluation", self.evaluation)]:
            if entry is not None and entry["payload"] is not None and entry["payload"] not in names:
                raise InputError(f"{what}: {where}: there is no payload {entry['payload']}")
            if entry is not None and entry["payload"] is None and not entry.get("reason"):
                raise InputError(f"{what}: {where}: no payload, and no reason why")
