"""The model card of a checkpoint: README.md with YAML front matter, as the Hugging Face hub reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from magr_gptq.app.quantizing.engines import ENGINES, loading
from magr_gptq.app.quantizing.job import Job, Outcome
from magr_gptq.app.quantizing.verifying import Loaded
from magr_gptq.app.text import windows_in_words
from magr_gptq.app.tuning.job import Tuned
from magr_gptq.toolkits.packing import packing_note

CITATION = """\
@inproceedings{zhang2024magr,
  title     = {MagR: Weight Magnitude Reduction for Enhancing Post-Training Quantization},
  author    = {Zhang, Aozhong and Wang, Naigang and Deng, Yanxia and Li, Xin and Yang, Zi and Yin, Penghang},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2406.00800}
}"""


def model_card(job: Job, outcome: Outcome) -> str:
    """The text of README.md; local paths are named by their last part only."""
    parts = (
        f"---\n{front_matter(job)}\n---",
        f"# {_name(job.model)}, {'mixed' if job.widths else job.bits}-bit {_method(job)}",
        "\n".join(_settings(job, outcome)),
        "## Layers\n\n" + "\n".join(_layers(outcome)),
        "## Loading\n\n" + "\n\n".join(_loading(job, outcome)),
        f"## Citation\n\n```bibtex\n{CITATION}\n```" if job.magr is not None else "",
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(job: Job) -> str:
    """The card's YAML, without its fences."""
    # the command line starts without it, too
    from huggingface_hub import ModelCardData

    on_hub = not Path(job.model).is_absolute()
    magr = () if job.magr is None else ("magr",)
    data = ModelCardData(
        base_model=job.model if on_hub else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["gptq", *magr, *(f"{bits}-bit" for bits in job.all_bits)],
        base_model_relation="quantized" if on_hub else None,
        bits=job.bits if job.widths is None else None,
        group_size=job.group_size,
    )
    return data.to_yaml()


def _settings(job: Job, outcome: Outcome) -> Iterator[str]:
    magr = "off" if job.magr is None else f"`{json.dumps(job.magr)}`" if job.magr else "the default settings"
    windows = f"{job.samples} random windows of {outcome.seqlen} tokens"
    begins = windows_in_words(job.cut, [outcome.beginning])
    yield f"- Base model: {_name(job.model)}"
    each = " by layer, as in `bits.json`" if job.widths else ""
    yield f"- Bits: {', '.join(map(str, job.all_bits))}{each}"
    yield f"- Group size: {'the whole row' if job.group_size == -1 else job.group_size}"
    yield f"- Symmetric: {_yes(job.sym)}; desc_act: {_yes(job.desc_act)}"
    yield f"- MagR: {magr}"
    yield f"- Calibration: {windows} of {_name(job.calibration)}, seed {job.seed}"
    yield f"- Windows: {begins}"
    if outcome.overlap:
        yield f"- {outcome.overlap}"
    if outcome.tuned:
        yield f"- Tuned afterwards: {Tuned(**outcome.tuned).says}"
    if job.runtime:
        yield f"- Made for: {job.runtime}"
    yield "- Made with: " + ", ".join(f"{name} {number}" for name, number in outcome.versions.items())
    release = outcome.versions.get("compressed-tensors")
    for bits in job.all_bits:
        if release and (note := packing_note(bits, release)):
            yield f"- Reading it: {note}"


def _layers(outcome: Outcome) -> Iterator[str]:
    totals = outcome.totals
    counts = ", ".join(f"{count} {what}" for what, count in sorted(totals["outcomes"].items()))
    yield f"{totals['layers']} layers were quantized: {counts}. Each one is in `magr.json`."
    for row in totals["reasons"]:
        yield f"- {row['layers']} {row['outcome']}: {row['reason']}"
    if few := totals.get("few_tokens"):
        yield f"\n{few}. More calibration text may help."
    shrunk = [_shrinkage(layer) for layer in outcome.layers if layer["outcome"] == "reduced"]
    if shrunk:
        yield (
            "\nLargest magnitude of a row after MagR, as a share of what it was: "
            f"{mean(shrunk):.0%} on average over layers, from {min(shrunk):.0%} to {max(shrunk):.0%}."
        )
    if outcome.warning:
        yield f"\n**Warning**: {outcome.warning}."


def _shrinkage(layer: dict[str, Any]) -> float:
    before = layer["largest_before"]
    return float(layer["largest_after"] / before) if before else 1.0


def _loading(job: Job, outcome: Outcome) -> Iterator[str]:
    tried = [Loaded(**found) for found in outcome.loaded]
    if tried:
        yield "Tried in a process that has the toolkit alone:"
    for loader in [found.loader for found in tried if found.right] if tried else [ENGINES[job.engine].loader]:
        yield f"```python\n{loading(job.engine, loader, Path(job.out).name)}\n```"
    for found in tried:
        if not found.right:
            yield f"Do not load it by {found.loader}: {found.says}."


def _name(source: str) -> str:
    return Path(source).name if Path(source).is_absolute() else source


def _method(job: Job) -> str:
    return "GPTQ" if job.magr is None else "GPTQ with MagR"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
