"""A plan: every layer's width, what it costs, and what the file will have; as JSON, for people to change."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from magr_gptq.allocation.worth import Width
from magr_gptq.app.planning.alike import EXPERTS, by_fused_name, head_among
from magr_gptq.app.planning.found import Survey
from magr_gptq.app.planning.sizes import LAYOUTS, Shape
from magr_gptq.errors import InputError

FORMAT = "magr-gptq bits 1"
BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class BitPlan:
    """Every layer's width.

    asked: what it was made for, such as {"avg_bits": 2.5}. engine, sym: which decide what a layer takes.
    survey: what every width would have cost.
    """

    widths: dict[str, Width]
    survey: Survey
    engine: str
    sym: bool = True
    asked: dict[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> int:
        """How many weights the planned layers have."""
        return sum(prod(layer.shape) for layer in self.survey.layers.values())

    @property
    def layer_bytes(self) -> int:
        """Of the planned layers: codes, scales, zero points, groups' numbers."""
        stored = LAYOUTS[self.engine].layer_bytes
        return sum(stored(self.survey.layers[n].shape, width, self.sym) for n, width in self.widths.items())

    @property
    def average_bits(self) -> float:
        """Of a weight in the planned layers, with all that is stored for it."""
        return 8 * self.layer_bytes / self.weights

    @property
    def file_bytes(self) -> int:
        """At most what the files have."""
        return self.layer_bytes + self.survey.rest_bytes

    @property
    def head(self) -> str | None:
        """The output layer's name, where it has a width."""
        return head_among(self.widths)

    @property
    def usual(self) -> Width:
        """The width of most weights."""
        counts: Counter[Width] = Counter()
        for name, width in self.widths.items():
            counts[width] += prod(self.survey.layers[name].shape)
        return counts.most_common(1)[0][0]

    @property
    def divergence(self) -> float | None:
        """The expected one, in nats a token; None where a width was not surveyed."""
        found = [self.divergence_of(name) for name in self.widths]
        return None if None in found else sum(one for one in found if one is not None)

    def divergence_of(self, name: str) -> float | None:
        """What this layer adds to it."""
        if self.widths[name] not in self.survey.widths:
            return None
        return self.survey.layers[name].divergences[self.survey.widths.index(self.widths[name])]

    def to_json(self) -> str:
        """Widths first, a line a layer, for people to change."""
        layers = {
            name: {"bits": width.bits, "group_size": width.group_size} for name, width in self.widths.items()
        }
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in layers.items())
        others = {
            "average_bits": round(self.average_bits, 4), "file_bytes": self.file_bytes,
            "expected_divergence": self.divergence, "engine": self.engine, "sym": self.sym,
            "asked": self.asked, "survey": self.survey.to_dict(),
        }  # fmt: skip
        rest = "".join(f',\n "{key}": {json.dumps(value)}' for key, value in others.items())
        return f'{{\n "format": "{FORMAT}",\n "layers": {{\n{lines}\n }}{rest}\n}}\n'

    @classmethod
    def read(cls, path: Path) -> BitPlan:
        """The plan in a file.

        Raises:
            InputError: not a plan, or one that a person's change has made senseless; names the layer.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"--plan {path} cannot be read as JSON: {error}") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise InputError(f"--plan {path}: it is not a plan, as `inspect --avg-bits` makes them")
        try:
            surveyed = Survey.from_dict(found["survey"])
            widths = {name: _width(name, given) for name, given in found["layers"].items()}
            plan = cls(widths, surveyed, found["engine"], found["sym"], found["asked"])
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"--plan {path} lacks something that plans have: {error!r}") from error
        plan.check()
        return plan

    def check(self) -> None:
        """InputError where layers are missing or unknown, or have groups that are wider than they are."""
        known = self.survey.layers
        if strange := sorted(self.widths.keys() ^ known.keys()):
            kind = "is not a layer of its survey" if strange[0] in self.widths else "has no width"
            raise InputError(f"the plan's {strange[0]} {kind}; every surveyed layer needs a width")
        for name, width in self.widths.items():
            if width.group_size > known[name].shape[1]:
                raise InputError(f"the plan's {name} has {known[name].shape[1]} columns, fewer than a group")

    def require_alike(self, fuses: bool) -> None:
        """InputError where layers that must be alike have several widths; fuses: see `by_fused_name`."""
        for fused, names in by_fused_name(self.widths, fuses).items():
            if len({self.widths[name] for name in names}) > 1:
                apart = "" if fused.endswith(EXPERTS) else ", or name a runtime that doesn't, --for gptqmodel"
                raise InputError(
                    f"the plan gives {', '.join(names[:4])} several widths; runtimes run them as one, "
                    f"{fused}: give them one width{apart}"
                )

    def require_model(self, shapes: Mapping[str, Shape], model: str) -> None:
        """InputError where it was made for a model with other layers."""
        mine = {name: found.shape for name, found in self.survey.layers.items()}
        if mine == dict(shapes):
            return
        first = min(mine.items() ^ shapes.items())[0]
        raise InputError(
            f"the plan is of another model: {first} is {_shape(mine.get(first))} there and "
            f"{_shape(shapes.get(first))} in {model}"
        )


def _shape(shape: Shape | None) -> str:
    return "absent" if shape is None else f"{shape[0]} × {shape[1]}"


def _width(name: str, given: Mapping[str, Any]) -> Width:
    bits, group = given["bits"], given["group_size"]
    if bits not in BITS:
        raise InputError(f"the plan gives {name} {bits!r} bits; GPTQ checkpoints hold 2, 3, 4 or 8")
    if not isinstance(group, int) or (group != -1 and group < 1):
        raise InputError(f"the plan gives {name} groups of {group!r}; give a positive number, or -1")
    return Width(bits, group)
