"""What a survey found: the cost of every width for every layer, as it travels between processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from magr_gptq.allocation.worth import Width
from magr_gptq.app.planning.sizes import Shape


@dataclass(frozen=True)
class Candidate:
    """A layer that is to be quantized.

    shape: [out, in]. divergences: that this layer is expected to bring the model, in nats a token, at every
    width of the survey.
    """

    shape: Shape
    divergences: tuple[float, ...]


@dataclass(frozen=True)
class Survey:
    """Of a whole model.

    rest_bytes: of everything in the files that is not a quantized layer, their headers included.
    tokens: that the passes saw. asked: the request that it answers.
    """

    widths: tuple[Width, ...]
    layers: dict[str, Candidate]
    rest_bytes: int
    tokens: int
    asked: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Survey:
        """The survey whose `to_dict` this is, also after JSON."""
        layers = {
            name: Candidate((found["shape"][0], found["shape"][1]), tuple(found["divergences"]))
            for name, found in values["layers"].items()
        }
        widths = tuple(Width(**width) for width in values["widths"])
        return cls(widths, layers, values["rest_bytes"], values["tokens"], values["asked"])
