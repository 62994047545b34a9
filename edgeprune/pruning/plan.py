"""PrunePlan: the output channels that each layer keeps. It is made before surgery and is sufficient to repeat it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgeprune_device.errors import InputError
from edgeprune_device.files import write_atomic

from edgeprune.pruning.channels import Channels
from edgeprune.pruning.layers import Mask

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class PrunePlan:
    """For each layer, the sorted indices of the output channels that stay.

    Example: {"model.2.m.0.cv1.conv": [0, 3, 4, 9, …]} and, because of coupling, the same list for "model.2.m.0.cv1.bn".

    Attributes:
        budget: The budget as text, such as "macs 0.65".
        criterion: The importance criterion that scored the channels.
        prunable: The number of prunable channels.
        removed: The number of removed channels.
        keep: Layer name -> indices of the output channels that stay.
        widths: Layer name -> its output channels before pruning, which identify the model of the plan.
        yaml: The Ultralytics YAML of the pruned network, if a YAML can express it (portable.py).
        schema_version: The version of the JSON format.
    """

    budget: str
    criterion: str
    prunable: int
    removed: int
    keep: dict[str, list[int]]
    widths: dict[str, int]
    yaml: dict[str, Any] | None = None
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def of(
        cls, channels: Channels, keep: Mask, *, budget: str, criterion: str, yaml: dict[str, Any] | None = None
    ) -> PrunePlan:
        """Make the plan from a mask.

        Args:
            channels: The channels of the network.
            keep: (atoms,) bool, True = keep.
            budget: The budget as text.
            criterion: The name of the importance criterion.
            yaml: The YAML of the pruned network, or None.
        """
        removed = int((~keep).sum())
        kept = {name: np.flatnonzero(keep[atoms]).tolist() for name, atoms in channels.out.items()}
        widths = {name: len(atoms) for name, atoms in channels.out.items()}
        return cls(budget, criterion, channels.prunable, removed, kept, widths, yaml)

    def mask(self, channels: Channels) -> Mask:
        """The mask over the atoms, from the plan's list for each layer.

        Returns:
            (atoms,) bool, True = keep.

        Raises:
            InputError: The plan was made for another model, or its coupled layers contradict each other.
        """
        if self.widths != {name: len(atoms) for name, atoms in channels.out.items()}:
            raise InputError(
                "plan: made for another model (layers differ in name or width); make a plan for this model"
            )
        keep = np.zeros(channels.atoms, dtype=bool)
        for name, atoms in channels.out.items():
            keep[atoms[self.keep[name]]] = True
        for name, atoms in channels.out.items():
            if not np.array_equal(np.flatnonzero(keep[atoms]), self.keep[name]):
                raise InputError(
                    f"plan: inconsistent at {name} (keeps channels that a coupled layer removes); make the plan again"
                )
        return keep

    def then(self, after: PrunePlan) -> PrunePlan:
        """This plan followed by a plan for the resulting network, as one plan for the first network."""
        keep = {name: [kept[i] for i in after.keep[name]] for name, kept in self.keep.items()}
        return PrunePlan(after.budget, after.criterion, self.prunable, self.removed + after.removed, keep, self.widths)

    @property
    def sha256(self) -> str:
        """SHA-256 of the JSON form, hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary."""
        return {
            "schema_version": self.schema_version,
            "budget": self.budget,
            "criterion": self.criterion,
            "prunable": self.prunable,
            "removed": self.removed,
            "widths": self.widths,
            "keep": self.keep,
            "yaml": self.yaml,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PrunePlan:
        """Make the plan from a dictionary that `to_json` returned.

        Raises:
            InputError: The dictionary is not a plan, or has another schema version.
        """
        try:
            if data["schema_version"] != SCHEMA_VERSION:
                raise InputError(
                    f"plan: unsupported schema version (found {data['schema_version']}, expected {SCHEMA_VERSION})"
                )
            return cls(
                str(data["budget"]),
                str(data["criterion"]),
                int(data["prunable"]),
                int(data["removed"]),
                {str(k): [int(i) for i in v] for k, v in data["keep"].items()},
                {str(k): int(v) for k, v in data["widths"].items()},
                data["yaml"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"plan: not a prune plan ({type(error).__name__}: {error})") from error

    def save(self, path: Path) -> None:
        """Write the plan as JSON, atomically."""
        write_atomic(path, json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> PrunePlan:
        """Read a plan that `save` wrote.

        Raises:
            InputError: The file cannot be read, or is not a plan.
        """
        try:
            data = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as a plan ({error})") from error
        return cls.from_json(data)
