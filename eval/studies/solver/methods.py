"""What `run.py` compares: this package, the paper's algorithm, and Brevitas' MagR."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eval.lib.baselines import Penalty
from magr_gptq import MagRConfig, reduce

# the paper's, for a Hessian with λmax = 1
ALPHA = 1e-3
STEPS = 150
PAPER, BREVITAS = "paper", "brevitas"
OURS_PAPERS_PENALTY, OURS = "ours, the paper's penalty", "ours, default"
BREVITAS_MISSING = (
    "brevitas is not installed, so it is left out; to compare with it: pip install 'brevitas==0.13.*'"
)


@dataclass(frozen=True)
class Problem:
    """A layer as all methods get it.

    largest: λmax of the Hessian, to match penalties; a method that needs it computes its own.
    """

    weight: Tensor
    hessian: Tensor
    bits: int
    largest: float

    def of_rows(self, rows: slice) -> Problem:
        """The same layer with these rows only."""
        return Problem(self.weight[rows], self.hessian, self.bits, self.largest)


@dataclass(frozen=True)
class Method:
    """One way to solve a problem.

    solve: (problem, steps) to the new weight; steps counts where `by_steps`, whose time grows linearly
        with them, and means nothing else.
    papers_penalty: whether it minimises the paper's objective.
    """

    solve: Callable[[Problem, int], Tensor]
    by_steps: bool
    papers_penalty: bool = True


def largest_eigenvalue(hessian: Tensor) -> float:
    """λmax, by a method that needs products with the Hessian only."""
    if len(hessian) < 3:  # lobpcg needs three columns
        return float(torch.linalg.eigvalsh(hessian)[-1])
    return float(torch.lobpcg(hessian, k=1)[0])


def paper(problem: Problem, steps: int) -> Tensor:
    """The paper's algorithm, as in `baselines.paper_magr` but with a fast λmax, which flatters it."""
    return paper_steps(problem, problem.hessian / largest_eigenvalue(problem.hessian), steps)


def paper_steps(problem: Problem, scaled: Tensor, steps: int) -> Tensor:
    """Its steps alone; scaled: the Hessian with λmax = 1."""
    penalty = Penalty(ALPHA, squared=False)
    rows = problem.weight
    for _ in range(steps):
        rows = penalty.prox(rows - (rows - problem.weight) @ scaled, 1.0)
    return rows


def brevitas(problem: Problem, steps: int) -> Tensor:
    """Brevitas' MagR of one linear layer, given the Hessian instead of inputs.

    Its prox has the weight α'/(η·‖H‖₁) with η = 1/λmax, which makes its penalty α'·λmax²/‖H‖₁ in the
    units of H; the paper's is α·λmax. So α' = α·‖H‖₁/λmax.
    """
    # optional, and slow to import
    from brevitas.graph.magr import MagR

    weight, hessian = problem.weight, problem.hessian
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    alpha = ALPHA * float(torch.linalg.norm(hessian, ord=1)) / problem.largest
    magr = MagR(layer, "layer", 1, False, gradient_steps=steps, alpha=alpha, device=weight.device)
    magr.H = hessian[None]
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar for every layer
        magr.single_layer_update()
    return layer.weight.data


def ours(config: MagRConfig) -> Callable[[Problem, int], Tensor]:
    """`magr_gptq.reduce` with these settings."""

    def solve(problem: Problem, steps: int) -> Tensor:  # noqa: ARG001
        return reduce(problem.weight, problem.hessian, bits=problem.bits, config=config).weight

    return solve


def methods() -> dict[str, Method]:
    """All that can run here."""
    found = {PAPER: Method(paper, by_steps=True)}
    if importlib.util.find_spec("brevitas") is None:
        print(BREVITAS_MISSING)
    else:
        found[BREVITAS] = Method(brevitas, by_steps=True)
    found[OURS_PAPERS_PENALTY] = Method(ours(MagRConfig(alpha=ALPHA)), by_steps=False)
    found[OURS] = Method(ours(MagRConfig()), by_steps=False, papers_penalty=False)
    return found
