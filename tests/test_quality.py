"""Default below plain GPTQ in perplexity, through the toolkit of this environment and its saved files."""

from __future__ import annotations

import importlib.util
from importlib.resources import files
from pathlib import Path

import pytest

from magr_gptq.engines.job import Job
from magr_gptq.engines.run import Worker
from magr_gptq.engines.scoring import score

ENGINE = "gptqmodel" if importlib.util.find_spec("gptqmodel") else "auto-gptq"
DEMO = Path(str(files("magr_gptq") / "demo"))


@pytest.mark.parametrize("bits", [2, 3])
def test_default_is_better_than_plain_gptq(bits: int, tmp_path) -> None:
    perplexities = {}
    log = tmp_path / "log"
    with Worker(log) as worker:
        for name, magr in (("plain", None), ("default", {})):
            job = Job(
                model=str(DEMO / "model"), out=str(tmp_path / name), engine=ENGINE, bits=bits, group_size=-1,
                calibration=str(DEMO / "text" / "calibration.txt"), samples=64, seqlen=256, magr=magr,
            )  # fmt: skip
            worker.quantize(job, lambda _: None)
            found = score(
                job.out, DEMO / "text" / "evaluation.txt", engine=ENGINE, seqlen=256, limit=64, log=log
            )
            perplexities[name] = found["perplexity"]
    # over seeds GPTQ moves by 0.1 at 3 bits, and the gaps are 0.4 at 3 bits, 9 at 2
    assert perplexities["default"] < perplexities["plain"] - 0.1
