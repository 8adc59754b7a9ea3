"""The methods that are compared, and what each asks of the quantizing engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from magr_gptq.errors import InputError

# every layer has bits of its own, see `magr_gptq.app.planning`
PLANNED = "planned"


@dataclass(frozen=True)
class Method:
    """One way to quantize: how weights are rounded, and MagR's settings, None for none."""

    label: str
    magr: dict[str, Any] | None
    rounding: str = "gptq"


METHODS = {
    "rtn": Method("RTN", None, "nearest"),
    "paper+rtn": Method("RTN + MagR, paper", {"preset": "paper"}, "nearest"),
    "magr+rtn": Method("RTN + MagR", {}, "nearest"),
    "gptq": Method("GPTQ", None),
    "paper": Method("GPTQ + MagR, paper", {"preset": "paper"}),
    "paper+30": Method("GPTQ + MagR, paper, 30 sweeps", {"preset": "paper", "refine": 30}),
    "magr": Method("GPTQ + MagR", {}),
    "magr+5": Method("GPTQ + MagR, 5 sweeps", {"refine": 5}),
    PLANNED: Method("GPTQ + MagR, bits by layer", {}),
}


def job_fields(name: str, positive_scales: bool = False) -> dict[str, Any]:
    """The fields of `Job` in which the methods differ.

    Args:
        positive_scales: leave out mirrored grids, see `MagRConfig`.

    Raises:
        InputError: the method is not known.
    """
    method = METHODS.get(name)
    if method is None:
        raise InputError(f"--methods {name}: the methods are {', '.join(METHODS)}")
    magr = method.magr
    if magr is not None and positive_scales:
        magr = {**magr, "mirror": False}
    return {"magr": magr, "rounding": method.rounding}
