"""Which environment the tests run in, and quiet, offline toolkits.

`MAGR_ENV` names the environment: "modern" has GPTQModel, "autogptq" has AutoGPTQ. A toolkit that
its environment should have fails the tests when it is missing; it never skips them. Files that need
torch and Python alone, the same in both environments, run in the first.

`HYPOTHESIS_PROFILE=long` or `--hypothesis-profile=long` makes tests/test_fuzz.py try 10,000 examples.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
from hypothesis import HealthCheck, settings

os.environ.update(
    CUDA_VISIBLE_DEVICES="",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    GPTQMODEL_CPU_WORKERS="2",
    GPTQMODEL_DISABLE_PACK_EXT="1",
    TORCHDYNAMO_DISABLE="1",
    LOGBAR_ANIMATION="0",
)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers, and what they start, share the cores

for profile, examples in (("short", 200), ("long", 10_000)):
    settings.register_profile(
        profile, max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

TOOLKIT_OF = {"modern": "gptqmodel", "autogptq": "auto_gptq"}

NEED_NO_TOOLKIT = (
    "baselines", "bench_solver", "compare_cells", "compare_results", "config", "convergence", "diagnostics",
    "fidelity", "fuzz", "grid", "kernels", "layer", "matrix", "memory", "models", "numerics", "prox",
    "recipes", "reference", "refine", "report_html", "scales", "solver", "threads",
)  # fmt: skip
if os.environ.get("MAGR_ENV") == "autogptq":
    collect_ignore = [f"test_{name}.py" for name in NEED_NO_TOOLKIT]

# the longest first, or one worker would idle while the other ends with them
LONGEST = (
    "roads", "gptqmodel_round_trip", "patches", "torchrun", "compare", "cli", "reliability", "autogptq",
    "compare_zero_shot", "llmcompressor", "optimum", "gptqmodel", "gptqmodel_resume", "fuzz",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


def pytest_configure(config: pytest.Config) -> None:
    environment = os.environ.get("MAGR_ENV")
    if environment is None:
        return
    module = TOOLKIT_OF[environment]
    if importlib.util.find_spec(module) is None:
        raise pytest.UsageError(f"MAGR_ENV={environment}, but {module} is not installed; run `make setup`")
