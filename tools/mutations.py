"""Break the mathematics on purpose, one place at a time, and see which test notices.

    python -m tools.mutations

Each mutation is made in a copy of the package in a temporary folder, never in the working tree. The table
names the first test that fails; the command fails where none does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("magr_gptq", "magr_score", "tests", "eval", "pyproject.toml")
UNUSED = shutil.ignore_patterns("__pycache__", "demo", "results", "*.json")


class Mutation(NamedTuple):
    """One text of one file of the package replaced by another, and the tests that should mind."""

    file: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    Mutation(
        "reduction/prox.py",
        "(total - t * theta) / (mass + t)",
        "(total - t * theta) / (mass + 2 * t)",
        "prox",
    ),
    Mutation("reduction/prox.py", "not (mass < mass_before).any()", "not (mass < mass_before).all()", "prox"),
    Mutation("reduction/penalty.py", "3 * (2**bits - 1) ** 2", "3 * (2**bits) ** 2", "solver"),
    Mutation("reduction/penalty.py", "view.sum(-1) for view", "view.mean(-1) for view", "solver"),
    Mutation("reduction/admm.py", "OVER_RELAXATION = 1.6", "OVER_RELAXATION = 2.4", "convergence"),
    Mutation("reduction/admm.py", ".mul_((metric / splitting.metric)[..., None, :])", "", "convergence"),
    Mutation(
        "reduction/admm.py",
        "factor.mul_(metric[..., None])",
        "factor.mul_(metric[..., None, :])",
        "convergence",
    ),
    Mutation("reduction/descent.py", "hessian, alpha=-1", "hessian, alpha=-0.5", "solver convergence"),
    Mutation(
        "reduction/solver.py", "improved = after <= before", "improved = after <= torch.inf", "numerics"
    ),
    Mutation("reduction/solver.py", "back = order.argsort(-1)", "back = order", "solver"),
    Mutation("reduction/solver.py", "chunk = -(-chunk // 2)", "chunk = chunk // 2", "solver"),
    Mutation("reduction/hessian.py", "10 * shift, shift)", "shift, shift)", "numerics"),
    Mutation("reduction/hessian.py", "10 * shift, shift)", "10 * shift, 10 * shift)", "numerics"),
    Mutation("reduction/hessian.py", "half - exponent", "half", "numerics"),
    Mutation(
        "reduction/hessian.py", "turned = _permuted(turned, self._order)", "turned = turned.clone()", "solver"
    ),
    Mutation("rounding/choice.py", ".argmin(0)", ".argmax(0)", "layer refine"),
    Mutation("rounding/choice.py", "kappa * shrinkage", "shrinkage", "layer refine"),
    Mutation("rounding/choice.py", "shrinkage.clamp_min(0)", "shrinkage", "numerics"),
    Mutation(
        "rounding/kernels/plain.py", "move * curvature - 2 * local", "move * curvature - local", "refine"
    ),
    Mutation("rounding/sweep.py", "residual.addmm_(moves, hessian[block], alpha=-1)", "pass", "refine"),
    Mutation(
        "rounding/scales.py", "vecdot(signal, quantized)", "vecdot(quantized @ hessian, quantized)", "refine"
    ),
    Mutation("rounding/scales.py", "gain <= LARGEST", "gain <= 1e9", "refine"),
    Mutation("rounding/step.py", "top / (top - rise)", "1.0", "grid"),
    Mutation("rounding/step.py", "zero + rise", "zero", "grid"),
    Mutation(
        "rounding/layer.py", "self._hessian.to(device) * self._unit", "self._hessian.to(device)", "layer"
    ),
    Mutation("rounding/layer.py", "self.factors.chunk(", "self.factors.flip(0).chunk(", "layer"),
    Mutation("config.py", "PLAIN = Candidate(0.0)", "PLAIN = Candidate(0.0, (0.9,))", "config"),
    Mutation("config.py", "1e-3 if group_size == -1 else 1e-4", "1e-4", "config"),
    Mutation("rounding/scales.py", "(original - quantized) @ hessian", "original @ hessian", "scales"),
    Mutation("rounding/scales.py", "change * _within_bounds(change)", "change * 1.0", "scales"),
    Mutation("rounding/scales.py", "quantized[:, some] @ hessian[some]", "quantized @ hessian", "scales"),
    Mutation("rounding/step.py", ".argmin(-1", ".argmax(-1", "factors"),
    Mutation("rounding/layer.py", "c.factors[:1] * (most", "(0.5,) * (most", "layer"),
    Mutation("config.py", "tuple(-beta for beta in betas)", "betas", "config"),
    Mutation("rounding/layer.py", "if groups > 1:", "if groups > 99:", "layer"),
    Mutation("rounding/layer.py", "scale=self.scale * factors", "scale=self.scale", "layer"),
    Mutation(
        "rounding/layer.py", "highest=lowest + self._levels - 1", "highest=lowest + self._levels", "layer"
    ),
]


def main() -> int:
    """Run the tests on the package as it is, then on every mutant."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_into(copy)
        every = " ".join(dict.fromkeys(name for m in MUTATIONS for name in m.tests.split()))
        failed = first_failure(copy, every)
        if failed:
            print(f"without any mutation {failed} fails")
            return 1
        survivors = 0
        print("| file | broken | test that failed |\n|---|---|---|")
        for mutation in MUTATIONS:
            caught = try_out(copy, mutation)
            survivors += caught is None
            print(
                f"| {mutation.file} | `{mutation.old}` → `{mutation.new}` | {caught or '**none**'} |",
                flush=True,
            )
    print(f"\n{len(MUTATIONS) - survivors} of {len(MUTATIONS)} mutations caught")
    return int(survivors > 0)


def copy_into(folder: Path) -> None:
    """The package without its demo, the tests, and what they import; imported from there, not from here."""
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=UNUSED)
        else:
            shutil.copy(ROOT / part, folder / part)
    script = "import magr_gptq; print(magr_gptq.__file__)"
    imported = run(folder, "-c", script).stdout.strip()
    if not Path(imported).resolve().is_relative_to(folder.resolve()):
        raise RuntimeError(f"the tests would import {imported}, not the copy in {folder}")


def try_out(folder: Path, mutation: Mutation) -> str | None:
    """The first test to fail with the mutation, which is undone afterwards."""
    path = folder / "magr_gptq" / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise RuntimeError(f"{mutation.file} holds {text.count(mutation.old)} times: {mutation.old}")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        return first_failure(folder, mutation.tests)
    finally:
        path.write_text(text, encoding="utf-8")


def first_failure(folder: Path, tests: str) -> str | None:
    """The name of the first test to fail in these files, or None where all pass."""
    files = [f"tests/mathematics/test_{name}.py" for name in tests.split()]
    arguments = ["-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-k", "not memory_peak"]
    done = run(folder, *arguments, *files)
    if done.returncode == 0:
        return None
    found = re.search(r"^FAILED tests/(.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return found[1]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # without bytecode: a mutation can leave size and time of a file as they were
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


if __name__ == "__main__":
    sys.exit(main())
