"""The solver's bench on tiny layers: it runs, resumes, and its numbers are what they claim to be."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from problems import hessian_of, weight_of
from torch.utils._python_dispatch import TorchDispatchMode

from eval.lib.baselines import Penalty, objective, paper_magr
from eval.lib.shapes import MODELS, layer_counts
from eval.studies.scaling import run as scaling
from eval.studies.solver import layers as bench_layers
from eval.studies.solver import measure as bench_measure
from eval.studies.solver import run as bench_solver
from eval.studies.solver.methods import (
    ALPHA,
    BREVITAS,
    OURS,
    OURS_PAPERS_PENALTY,
    PAPER,
    Problem,
    brevitas,
    largest_eigenvalue,
    methods,
    paper,
)
from magr_gptq import MagRConfig
from magr_gptq.rounding.kept import Kept
from magr_gptq.rounding.layer import prepare
from magr_gptq.rounding.rounded import Rounded
from magr_gptq.rounding.settle import settle

needs_brevitas = pytest.mark.skipif(find_spec("brevitas") is None, reason="brevitas is not installed")


def problem(rows: int = 12, columns: int = 32, condition: float = 1e6) -> Problem:
    weight, hessian = bench_layers.make(bench_layers.of_shape(rows, columns, condition=condition), seed=0)
    return Problem(weight, hessian, 3, largest_eigenvalue(hessian))


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """The command, on one tiny layer and with memory measured for it."""
    monkeypatch.setattr(bench_measure, "LEAST_ELEMENTS", 0)
    out = tmp_path / "bench.json"

    def run(*arguments: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["bench_solver.py", *arguments, "--out", str(out)])
        bench_solver.main()
        return json.loads(out.read_text())

    return run


def test_run_resume_and_table(bench, monkeypatch, capsys, tmp_path) -> None:
    pytest.importorskip("matplotlib", reason="the figure needs the extra eval")
    record = bench("run", "--shapes", "16x16", "--repeats", "2")
    (layer,) = record["layers"].values()
    assert (tmp_path / "bench.png").stat().st_size > 0
    for baseline, name in ((PAPER, OURS), (PAPER, PAPER)):
        ratio, seconds = layer["times_faster"][baseline][name], layer["seconds"][name]
        assert ratio["least"] <= ratio["median"] <= ratio["most"]
        assert seconds["least"] <= seconds["median"] <= seconds["most"]
    assert layer["times_faster"][PAPER][PAPER]["median"] == 1
    assert set(layer["peak_bytes"]) == set(layer["seconds"])
    assert record["machine"]["torch"] == torch.__version__

    monkeypatch.setattr(bench_solver, "measure", lambda *_: pytest.fail("measured a layer that has a result"))
    assert bench("run", "--shapes", "16x16", "--repeats", "2") == record
    capsys.readouterr()
    bench("table")
    printed = capsys.readouterr().out
    assert all(name in printed for name in layer["seconds"])
    with pytest.raises(SystemExit, match="give another --out"):
        bench("run", "--shapes", "16x16", "--repeats", "2", "--bits", "2")


@pytest.mark.parametrize("condition", [1e4, 1e8])
def test_hessian_has_the_spectrum_it_is_named_for(condition: float) -> None:
    hessian = bench_layers.made_up_hessian(64, condition, torch.Generator().manual_seed(0)).double()
    values = torch.linalg.eigvalsh(hessian).flip(0)
    # float32 rounds the smallest eigenvalue of the worst condition by a few per cent
    assert float(values[0] / values[-1]) == pytest.approx(condition, rel=0.3)
    assert values[3] > 10 * values[4]
    assert (hessian.abs() > 1e-3 * hessian.abs().max()).double().mean() > 0.9  # far from diagonal


def test_the_paper_is_the_papers() -> None:
    given = problem()
    expected = paper_magr(given.weight, given.hessian, ALPHA, 50)
    torch.testing.assert_close(paper(given, 50), expected, rtol=0, atol=1e-6)


@needs_brevitas
def test_brevitas_minimises_the_same_objective() -> None:
    """With its penalty matched it ends where the paper's algorithm ends."""
    given = problem()
    before = given.weight.clone()
    torch.testing.assert_close(brevitas(given, 150), paper(given, 150), rtol=0, atol=1e-4)
    assert torch.equal(given.weight, before)


def test_quality_is_of_the_named_objective() -> None:
    given, found = problem(), methods()
    _, solved = bench_measure.times(given, found, 1, "cpu")
    quality = bench_measure.quality(given, found, solved)
    scaled = given.hessian.double() / given.largest
    start = objective(
        given.weight.double(), given.weight.double(), scaled, Penalty(ALPHA, squared=False)
    ).sum()
    assert quality["objective"]["start"] == pytest.approx(float(start))
    assert quality["objective"][OURS_PAPERS_PENALTY] <= quality["objective"][PAPER] < float(start)
    assert quality["own objective"][OURS] < quality["own objective"]["start"]
    assert OURS not in quality["objective"]
    assert 0 < quality["proxy_loss"]["gptq"] < 1


def test_fewer_steps_are_scaled_to_all(monkeypatch) -> None:
    """Setup counts once, a step 150 times."""
    monkeypatch.setattr(bench_measure, "MOST_MULTIPLICATIONS", 0)
    clock = [0.0]
    monkeypatch.setattr(bench_measure, "now", lambda _: clock[0])

    def solve(given: Problem, steps: int) -> torch.Tensor:
        clock[0] += 7 + 2 * steps
        return given.weight

    found = {"made up": bench_measure.Method(solve, by_steps=True)}
    seconds, _ = bench_measure.times(problem(), found, 2, "cpu")
    assert seconds["made up"] == pytest.approx([7 + 2 * 150] * 2)


def test_peak_memory_of_a_known_size(tmp_path) -> None:
    """A descent holds several copies of its weight, and less than 30."""
    given = problem(2048, 512)
    torch.save(given, tmp_path / "problem.pt")
    peak = bench_measure.peak_on_cpu(str(tmp_path / "problem.pt"), PAPER)
    size = 4 * given.weight.numel()
    assert 3 * size < peak < 30 * size


def test_brevitas_may_be_missing(monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert BREVITAS not in methods()
    assert "pip install 'brevitas==0.13.*'" in capsys.readouterr().out


def test_models_have_their_layers_and_parameters() -> None:
    sizes = {}
    for model in MODELS:
        counts = layer_counts(model)
        sizes[model] = sum(rows * columns * count for (rows, columns), count in counts.items()) / 1e9
    assert sum(layer_counts("llama2-7b").values()) == 224
    # published parameter counts less embeddings and head
    assert sizes["llama2-7b"] == pytest.approx(6.74 - 0.26, abs=0.02)
    assert sizes["llama2-13b"] == pytest.approx(13.02 - 0.33, abs=0.02)
    assert sizes["llama2-70b"] == pytest.approx(68.98 - 0.52, abs=0.05)
    assert sizes["llama3-8b"] == pytest.approx(8.03 - 1.05, abs=0.02)
    assert sizes["llama3-405b"] == pytest.approx(405.9 - 4.2, abs=0.5)
    assert sizes["mixture-671b"] == pytest.approx(671.0 - 1.85, abs=1)


def test_the_document_has_the_tables_of_today() -> None:
    """Those of the README, by `python -m eval.studies.scaling.run`."""
    document = Path(scaling.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert all(line in document for line in scaling.report().splitlines())


def test_ranks_by_hand() -> None:
    """Two equal layers on two ranks take half as long; a wide one next to them waits for neither."""
    equal = [scaling.Blocks(3, (scaling.Input(64, (8, 8)),))]
    alone, shared = (scaling.seconds_on_ranks(equal, ranks) for ranks in (1, 2))
    assert shared == pytest.approx(alone / 2)
    wide = scaling.Input(640, (8,))
    both = scaling.seconds_on_ranks([scaling.Blocks(1, (*equal[0].inputs, wide))], 2)
    assert both == pytest.approx(scaling.seconds_on_ranks([scaling.Blocks(1, (wide,))], 1))


def test_measured_against_the_formula() -> None:
    layer = {"rows": 1, "columns": 1000, "seconds": {OURS: {"median": 4.0}}}
    flops = scaling.factorization(1000) + scaling.products(1, 1000)
    (_, row) = scaling.measured_table({"layers": {"made up": layer}, "product_flops": flops / 2})
    assert row[2:] == ["2.0000", "4.0000", "2.0"]


class Products(TorchDispatchMode):
    """Adds up the flops of products of matrices."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_"):
            left, right = args[-2:]
            self.flops += 2 * left.numel() * right.shape[1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("group_size", "more"), [(64, 0), (-1, 1 / 4)])
def test_the_default_takes_the_products_that_are_counted(group_size: int, more: float) -> None:
    rows, columns = 128, 512
    plan = MagRConfig().resolve(3, group_size)
    assert len(plan.candidates) == scaling.CANDIDATES
    weight, hessian = weight_of(rows, columns), hessian_of(columns)
    with Products() as counted:
        layer, found = prepare(weight, hessian, plan)
        size = columns if group_size == -1 else group_size
        groups = torch.cat(found).unflatten(1, (-1, size))
        scale = groups.abs().amax(2) / 3.5
        codes = (groups / scale[..., None]).round().clamp(-4, 3)
        nearest = (codes * scale[..., None]).flatten(1)
        group_of = torch.arange(columns) // size
        kept = Kept.of(layer, Rounded(nearest, scale, torch.zeros_like(scale), group_of, lowest=-4))
        settle(layer, kept)
    one = 2 * rows * columns**2
    assert counted.flops / one == pytest.approx(
        scaling.default_products(rows, columns) / one + more, rel=0.02
    )
