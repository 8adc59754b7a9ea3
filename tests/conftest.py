"""Which environment the tests run in, and quiet, offline toolkits.

`MAGR_ENV` names the environment: "modern" has GPTQModel, "autogptq" has AutoGPTQ. A toolkit that
its environment should have fails the tests when it is missing; it never skips them. The mathematics and
the studies, the same in both environments, run in the first; where a file needs it otherwise, it says so:
`pytestmark = pytest.mark.environments("modern", "autogptq")`.

Files marked `long` go first, or one worker would idle while the other ends with them.

`HYPOTHESIS_PROFILE=long` or `--hypothesis-profile=long` makes mathematics/test_fuzz.py try 10,000 examples.
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

FIRST_ALONE = ("mathematics", "studies")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    environment = os.environ.get("MAGR_ENV")
    if environment:
        config.hook.pytest_deselected(items=[item for item in items if environment not in environments(item)])
        items[:] = [item for item in items if environment in environments(item)]
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def environments(item: pytest.Item) -> tuple[str, ...]:
    """Those that a test runs in: what its file says, or else what its folder does."""
    marker = item.get_closest_marker("environments")
    if marker:
        return marker.args
    return ("modern",) if item.path.parent.name in FIRST_ALONE else tuple(TOOLKIT_OF)


def pytest_configure(config: pytest.Config) -> None:
    environment = os.environ.get("MAGR_ENV")
    if environment is None:
        return
    module = TOOLKIT_OF[environment]
    if importlib.util.find_spec(module) is None:
        raise pytest.UsageError(f"MAGR_ENV={environment}, but {module} is not installed; run `make setup`")
