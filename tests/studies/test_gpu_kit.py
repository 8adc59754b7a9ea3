"""The GPU kit on the CPU: it runs to its end, and what fails costs no other part."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the kit is for machines that have it")

from eval.studies.scaling import chain, kit
from eval.studies.scaling import run as scaling
from tools.gpu import kernels
from tools.gpu import run as gpu
from tools.gpu.table import table

ROOT = Path(gpu.__file__).parents[2]
PARTS = ["rates", "kernels", "layers", "models", "readers gptq_torch", "memory", "compressor"]


@pytest.mark.long
def test_the_kit_runs_to_its_end_without_a_gpu(tmp_path) -> None:
    pytest.importorskip("triton", reason="its interpreter stands in for a GPU")
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "WHEELS": str(tmp_path)}
    command = [ROOT / "tools" / "gpu" / "run.sh", "--dry", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "out" / "gpu.json").read_text())
    log = (tmp_path / "out" / "log.txt").read_text()[-3000:]
    for part in PARTS:
        assert record[part]["skipped"] is None, log
        assert record[part]["lines"], log
        wrong = [line for line in record[part]["lines"] if "failed" in line or line.get("right") is False]
        assert not wrong, log
    # what the readers are there for: a kernel that takes scales for positive would be seen
    plain, magr = sorted(record["readers gptq_torch"]["lines"], key=lambda line: line["checkpoint"])
    assert magr["kl_unsigned"] > 100 * magr["kl"]
    assert plain["kl_unsigned"] == pytest.approx(0, abs=1e-6)
    assert "| one-block-w4-magr | TorchLinear |" in (tmp_path / "out" / "gpu.md").read_text()


def running(module: str, folder: Path) -> gpu.Running:
    arguments = argparse.Namespace(dry=True, models=[])
    return gpu.Running(gpu.Step(module, 1), folder, folder / "log.txt", arguments)


def test_a_part_that_dies_is_a_line_with_its_last_words(tmp_path) -> None:
    result = running("no_such_part", tmp_path).result(60)
    assert result["lines"] == []
    assert "No module named tools.gpu.no_such_part" in result["skipped"]


def test_a_part_whose_time_is_over_ends_and_keeps_its_lines(tmp_path) -> None:
    (tmp_path / "kernels.jsonl").write_text('{"kernel": "update"}\n')
    part = running("kernels", tmp_path)
    result = part.result(0)
    assert result["skipped"] == "0 s were not enough"
    assert result["lines"] == [{"kernel": "update"}]
    assert part._process.returncode is not None


def test_a_wrong_kernel_is_told_of(monkeypatch) -> None:
    """The comparison sees an error that a twin in float32 does not have."""

    def wrong(v: torch.Tensor, *others: object, **settings: object) -> torch.Tensor:
        found = kernels.plain_update_(v, *others, **settings)
        v.mul_(1.001)
        return found

    given = kernels.update_arguments(3, 48, 32, kernels.VARIANTS[0], "cpu")
    monkeypatch.setattr(kernels, "fused_update_", kernels.plain_update_)
    assert kernels.compare_update(given)["right"]
    monkeypatch.setattr(kernels, "fused_update_", wrong)
    assert not kernels.compare_update(given)["right"]


def test_a_time_that_is_missing_gives_no_sum() -> None:
    line = {"shape": "8 x 8", "layers": 2, "inputs": 1, "tf32": False, "factorization": 1.0, "reduce": 2.0}
    lines = [{"shapes": ["8 x 8"]}, line, {**line, "failed": "no memory"}]
    record = {"layers": {"skipped": "1 s were not enough", "lines": lines}}
    text = table(record)
    assert "| `reduce`, one strength, each layer alone | 4.00 | not measured |" in text
    assert "| 30 sweeps | not measured | not measured |" in text
    assert "- layers skipped: 1 s were not enough" in text
    assert "no memory" in text


def test_predictions_stand_in_the_documents() -> None:
    """By `python -m eval.studies.scaling.kit` and `.chain`."""
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert all(line in page for line in kit.table().splitlines())
    study = Path(scaling.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert all(line in study for line in chain.table().splitlines())


def test_a_chain_by_hand() -> None:
    """One block of a layer that reads and one that writes; a routed expert has no target."""
    tokens = scaling.TOKENS
    reads, writes = scaling.Input(64, (256,)), scaling.Input(256, (64,))
    found = chain.of_model([scaling.Blocks(3, (reads, writes))])
    assert found["original's forward"] == 3 * 2 * tokens * 2 * 64 * 256
    assert found["Gram, but for GPTQModel"] == 3 * 2 * tokens * 5 / 8 * (64**2 + 256**2)
    assert found["lacking"] == 3 * 2 * tokens * (64**2 + 64 * 256)
    expert = chain.of_input(scaling.Input(64, (256,), share=0.1), writes=False)
    assert expert["lacking"] == expert["targets"] == 0


def test_wheels_are_of_pinned_packages() -> None:
    script = (ROOT / "tools" / "gpu" / "wheels.sh").read_text()
    names = re.search(r"^names=\((.*?)\)$", script, re.M | re.S)[1].split()
    pins = {line.split("==")[0].lower() for line in (ROOT / "requirements" / "modern.txt").open()}
    assert names
    assert set(names) <= pins
