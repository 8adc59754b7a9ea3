"""The settings resolved for one layer: all that its way through reduction and rounding needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Derived:
    """½γ‖w‖∞², where γ is this constant c times the rounding error to come; see `derived_penalty`."""

    strength: float


@dataclass(frozen=True)
class Linear:
    """The paper's α‖w‖∞, for a Hessian scaled to λmax = 1; see `linear_penalty`."""

    alpha: float


Penalty = Derived | Linear


@dataclass(frozen=True)
class Candidate:
    """One way to quantize a row.

    penalty: of the row's reduction; None rounds the weight as it is.
    factors: those on the quantization step that each group of the row chooses from. A negative one turns
        a symmetric grid round, which has one code more on one side of zero than on the other.
    """

    penalty: Penalty | None
    factors: tuple[float, ...] = (1.0,)

    PLAIN: ClassVar[Candidate]


Candidate.PLAIN = Candidate(None)


@dataclass(frozen=True)
class Plan:
    """What is to be done with a layer of these bits and groups.

    bits: of the grid, 2 to 8.
    group_size: consecutive columns that share a scale; −1 is the whole row.
    order: [in], the order of columns in which groups are formed and columns are rounded; None is theirs.
    candidates: what every row is quantized under; `Candidate.PLAIN` first, where it is one of them.
    proximal: solve by the paper's proximal gradient descent; else by ADMM.
    iterations: of the solver.
    nearest: round to nearest, without spreading a column's error over the later ones.
    sweeps: of coordinate descent after rounding.
    shrinks: whether the Hessian is regularised; see `reduction.shrinkage` and `reduction.held_out`.
    reorders: whether columns are rounded by importance where a toolkit takes them as they come.
    aims_at_model: whether a layer comes near the unquantized model's output; see `reduction.target`.
    stored: the dtype of scales in the checkpoint.
    corrects_gain: whether scales are fitted to the codes, with less bias of every row's output.
    """

    bits: int
    group_size: int
    candidates: tuple[Candidate, ...]
    proximal: bool
    iterations: int
    nearest: bool
    sweeps: int
    corrects_gain: bool
    shrinks: bool
    reorders: bool
    aims_at_model: bool
    order: Tensor | None = field(default=None, compare=False)
    stored: torch.dtype = torch.float32

    @property
    def has_choice(self) -> bool:
        """Whether rows choose among several candidates."""
        return len(self.candidates) > 1

    @property
    def had_plain(self) -> bool:
        """Whether plain GPTQ is one of them."""
        return self.candidates[0] == Candidate.PLAIN

    @property
    def factors(self) -> Tensor:
        """Every candidate's factors, the first repeated where others have more: [candidates, factors]."""
        most = max(len(candidate.factors) for candidate in self.candidates)
        return torch.tensor([c.factors + c.factors[:1] * (most - len(c.factors)) for c in self.candidates])

    def only(self, candidate: Candidate) -> Plan:
        """The same with this one candidate."""
        return replace(self, candidates=(candidate,))
