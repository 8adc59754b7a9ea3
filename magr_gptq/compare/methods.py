"""The methods that are compared, and what each asks of the quantizing engine."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from magr_gptq.engines.job import Job
from magr_gptq.errors import InputError


@dataclass(frozen=True)
class Method:
    """One way to quantize: how weights are rounded, and MagR's settings, None for none."""

    label: str
    magr: dict[str, Any] | None
    rounding: str = "gptq"


METHODS = {
    "rtn": Method("RTN", None, "rtn"),
    "paper+rtn": Method("RTN + MagR, paper", {"preset": "paper"}, "rtn"),
    "magr+rtn": Method("RTN + MagR", {}, "rtn"),
    "gptq": Method("GPTQ", None),
    "paper": Method("GPTQ + MagR, paper", {"preset": "paper"}),
    "magr": Method("GPTQ + MagR", {}),
}


def job_fields(name: str) -> dict[str, Any]:
    """The fields of `Job` in which the methods differ.

    Raises:
        InputError: the method is not known, or the engine cannot do it.
    """
    method = METHODS.get(name)
    if method is None:
        raise InputError(f"--methods {name}: the methods are {', '.join(METHODS)}")
    if method.rounding == "gptq":
        return {"magr": method.magr}
    if "method" not in {field.name for field in fields(Job)}:
        raise InputError(f"--methods {name}: the engines here cannot round to nearest; leave it out")
    return {"magr": method.magr, "method": method.rounding}
