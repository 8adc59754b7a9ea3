"""GPTQModel's and llm-compressor's own tests, with magr_gptq enabled and without it: the same ones must pass.

    python -m tools.peers [TOOLKIT=FOLDER ...]      gptqmodel, llm-compressor

Runs the published tests below, which need no GPU, no network and no weights, against the installed release;
`magr` stays off. FOLDER holds a toolkit's sources with its tests; without it they are cloned at the tag of
the installed release. Counts are written to tools/results/peers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from magr_gptq.toolkits import TOOLKITS
from tools.outcomes import counts, run_pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tools" / "results" / "peers.json"
PLUGIN = Path(__file__).with_name("peers_plugin.py")

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "GPTQMODEL_CPU_WORKERS": "2",
    "GPTQMODEL_DISABLE_PACK_EXT": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "LOGBAR_ANIMATION": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class Peer(NamedTuple):
    """A toolkit's repository, the tag of a release there, and the tests to run."""

    repository: str
    tag: str
    tests: tuple[str, ...]


PEERS = {
    "gptqmodel": Peer(
        "https://github.com/ModelCloud/GPTQModel",
        "v{}",
        (
            "tests/module_tree/test_subset.py",
            "tests/protocol",
            "tests/qcfg",
            "tests/test_format_conversion_flow.py",
            "tests/test_gar_remainder.py",
            "tests/test_hessian.py",
            "tests/test_looper_concurrency.py",
            "tests/test_looper_helpers.py",
            "tests/test_moe_expert_batching.py",
            "tests/test_named_module.py",
            "tests/test_planar_format_gptq_p.py",
            "tests/test_planar_model_e2e.py",
            "tests/test_quantize_config_offload_tempdir.py",
            "tests/test_qzero_offsets.py",
            "tests/test_stage_inputs_capture.py",
            "tests/test_stage_modules.py",
            "tests/test_subset_plan.py",
            "tests/test_tensor_parallel_padder.py",
            "tests/test_tiny_moe_quant_smoke.py",
            "tests/test_weight_only_config.py",
            "tests/test_weight_only_looper.py",
        ),
    ),
    "llm-compressor": Peer(
        "https://github.com/vllm-project/llm-compressor",
        "{}",
        (
            "tests/llmcompressor/core",
            "tests/llmcompressor/modifiers/calibration",
            "tests/llmcompressor/modifiers/gptq",
            "tests/llmcompressor/modifiers/quantization",
            "tests/llmcompressor/observers",
            "tests/llmcompressor/pipelines",
            "tests/llmcompressor/recipe",
            "tests/unit",
        ),
    ),
}


def main() -> int:
    """Run every toolkit's tests twice, and write what differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sources", nargs="*", metavar="TOOLKIT=FOLDER")
    sources = dict(given.split("=", 1) for given in parser.parse_args().sources)
    if not sources.keys() <= PEERS.keys():
        parser.error(f"unknown toolkit in {', '.join(sources)}; there are {', '.join(PEERS)}")
    records = {}
    for name, peer in PEERS.items():
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(sources[name]) if name in sources else clone(name, peer, Path(scratch))
            records[name] = compare(name, peer, source, Path(scratch))
        print(f"{name}: {json.dumps(records[name], indent=1)}", flush=True)
    RESULTS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return int(any(record["differ"] or not record["enabled"]["passed"] for record in records.values()))


def clone(name: str, peer: Peer, folder: Path) -> Path:
    """The sources at the installed release's tag."""
    tag = peer.tag.format(TOOLKITS[name].version)
    source = folder / f"{name}-{tag}"
    command = ["git", "clone", "--quiet", "--depth", "1", "--branch", tag, peer.repository, str(source)]
    subprocess.run(command, check=True)
    return source


def compare(name: str, peer: Peer, source: Path, scratch: Path) -> dict:
    """Both runs of a toolkit's tests; ready for JSON."""
    plain, _ = run(source, peer.tests, scratch / "plain", {})
    enabled, said = run(source, peer.tests, scratch / "enabled", {"MAGR_PEER": name})
    changed = re.search(r"magr_gptq had changed (\d+) symbols", said)
    if changed is None:
        raise RuntimeError(f"magr_gptq was not enabled:\n{said[-3000:]}")
    names = sorted(plain.keys() | enabled.keys())
    return {
        "installed": TOOLKITS[name].version,
        "tests_from": source.resolve().name,
        "tests": list(peer.tests),
        "symbols_changed": int(changed[1]),
        "without": counts(plain),
        "enabled": counts(enabled),
        "differ": {
            test: [plain.get(test), enabled.get(test)]
            for test in names
            if (plain.get(test) == "passed") != (enabled.get(test) == "passed")
        },
        "passed_in_neither": {
            test: plain.get(test) for test in names if "passed" not in (plain.get(test), enabled.get(test))
        },
    }


def run(
    source: Path, tests: tuple[str, ...], folder: Path, settings: dict[str, str]
) -> tuple[dict[str, str], str]:
    """The tests, copied out of the sources, which would be imported in place of the installed release."""
    shutil.copytree(source / "tests", folder / "tests")
    shutil.copy(PLUGIN, folder)
    scratch = folder / "tmp"
    scratch.mkdir()
    environment = {**os.environ, **ENVIRONMENT, **settings, "TMPDIR": str(scratch)}
    plugin = ["-p", PLUGIN.stem] if settings else []
    return run_pytest(
        Path(sys.executable), [*plugin, *tests], folder, environment, folder.with_suffix(".xml")
    )


if __name__ == "__main__":
    sys.exit(main())
