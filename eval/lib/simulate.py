r"""Layer-by-layer quantization in memory, to study settings before they go through a toolkit.

    python -m eval.lib.simulate MODEL --calibration FILE --evaluation FILE \
        --settings SETTINGS.json --out RESULTS.jsonl

SETTINGS.json is a list of {"name", "method": one of METHODS, "bits", and as needed "group_size",
"seed", "rows" of calibration, and for "magr" its settings, "magr": {...}}. Every finished setting adds
one line to `--out`; settings whose name is there already for this model are skipped, so a run can be
resumed. A line's "layers" are the four `Measures` of every layer, in the order in which they run.
`--also` scores another text, too. A text's "divergence" is that of the predictions from the original model's.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from eval.lib import reference
from eval.lib.baselines import gptq_grid, gptq_round, inverse_factor, proxy_loss, round_to_nearest
from eval.lib.fidelity import ALSO, CONTEXT, Text
from magr_gptq import MagRConfig
from magr_gptq.app.text import load_text, random_windows
from magr_gptq.rounding.kept import Kept
from magr_gptq.rounding.layer import prepare
from magr_gptq.rounding.rounded import Rounded
from magr_gptq.rounding.settle import settle
from magr_score.windows import TOKENIZER, cut_windows, tokenize

HIDDEN_ROWS = 16
METHODS = ("rtn", "gptq", "magr", "reference")
QuantizeLayer = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """One line of the study; `magr` is what the toolkits' keyword takes."""

    name: str
    method: str
    bits: int
    group_size: int = -1
    magr: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    rows: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SystemExit(f"{self.name}: method {self.method!r} is unknown; use one of {METHODS}")


class Measures(NamedTuple):
    """What one layer's rounding cost, relative to tr(ŴHŴᵀ) = E.

    loss: ‖Ŵ − Q‖²_H / E. shrinkage: ‖Ŵ − W'‖²_H / E. coherence: ‖ŴH(Ŵ − Q)ᵀ‖²_F / E².
    bias: tr(ŴH(Ŵ − Q)ᵀ) / E, the part of its output that the layer has lost.
    """

    loss: float
    shrinkage: float
    coherence: float
    bias: float

    @classmethod
    def of(cls, quantized: Tensor, reduced: Tensor, weight: Tensor, hessian: Tensor) -> Measures:
        signal, error = weight @ hessian, weight - quantized
        energy = float((signal * weight).sum())
        along = signal @ error.T
        return cls(
            proxy_loss(quantized, weight, hessian),
            proxy_loss(reduced, weight, hessian),
            float(along.square().sum()) / energy**2,
            float(along.diagonal().sum()) / energy,
        )


class LayerQuantizer:
    """`quantize_layer` of a setting; layers that share an input share one factorization."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.measures: list[Measures] = []
        self._hessian: Tensor | None = None

    def __call__(self, weight: Tensor, hessian: Tensor) -> Tensor:
        if hessian is not self._hessian:
            self._hessian, self._factor = hessian, inverse_factor(hessian)
        quantized, reduced = self._quantize(weight, hessian)
        self.measures.append(Measures.of(quantized, reduced, weight, hessian))
        return quantized

    def _quantize(self, weight: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's rounded weight, and what of it was rounded."""
        s = self.setting
        live = weight * (hessian.diagonal() != 0)  # as toolkits do with inputs that never fired
        if s.method == "rtn":
            return round_to_nearest(live, s.bits, s.group_size), live
        if s.method == "gptq":
            return gptq_round(live, self._factor, s.bits, s.group_size), live
        if s.method == "reference":
            return reference.quantize(live, hessian, s.bits, s.group_size)
        magr = MagRConfig.parse(s.magr) or MagRConfig()
        layer, candidates = prepare(live, hessian, magr.resolve(s.bits, s.group_size))
        rows = torch.cat(candidates)
        quantized, step = gptq_grid(rows, self._factor, s.bits, s.group_size, layer.factors)
        zero = torch.full_like(step, 2 ** (s.bits - 1))
        size = weight.shape[1] if s.group_size == -1 else s.group_size
        group_of = torch.arange(weight.shape[1]) // size
        settled = settle(layer, Kept.of(layer, Rounded(quantized, step, zero, group_of)))
        reduced = rows.view(-1, *weight.shape)[settled.picked, torch.arange(len(weight))]
        return settled.rounded.weight, reduced


@torch.no_grad()
def calibrate_and_quantize(model: PreTrainedModel, rows: Tensor, quantize_layer: QuantizeLayer) -> None:
    """Replace the weight of every linear layer below the head by `quantize_layer(weight, hessian)`.

    All calibration rows run through the model as one batch. A layer is quantized the moment its
    input arrives, before it computes its output: the input comes from quantized layers only, as
    in the toolkits' sequential loop, and one forward pass does it all. Layers that are given
    the very same input (q, k, v; gate, up) get the very same Hessian object.

    Args:
        model: a transformers causal language model in float32, changed in place.
        rows: [rows, tokens] token ids.
        quantize_layer: gets W [out, in] and H = XᵀX / tokens, returns the quantized W.
    """
    latest: list[tuple[Tensor, Tensor]] = []

    def quantize(module: nn.Linear | Conv1D, arguments: tuple[Tensor]) -> None:
        if not latest or latest[0][0] is not arguments[0]:
            inputs = arguments[0].flatten(0, -2)
            latest[:] = [(arguments[0], inputs.T @ inputs / len(inputs))]
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        weight.copy_(quantize_layer(weight.clone(), latest[0][1]))

    layers = [m for m in model.base_model.modules() if isinstance(m, (nn.Linear, Conv1D))]
    handles = [layer.register_forward_pre_hook(quantize) for layer in layers]
    try:
        model.base_model(input_ids=rows, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def hidden_error(model: PreTrainedModel, original: PreTrainedModel, rows: Tensor) -> float:
    """Squared distance of the last hidden states from the original model's, relative to those."""
    found, wanted = (m.base_model(input_ids=rows, use_cache=False)[0] for m in (model, original))
    return float((found - wanted).square().sum() / wanted.square().sum())


def scores(model: nn.Module, texts: dict[str, Text]) -> dict[str, float]:
    """Perplexity on each text by its key, and the divergence from the original model."""
    found = {}
    for key, text in texts.items():
        found[key] = round(text.perplexity(model), 4)
        found[key.replace("perplexity", "divergence")] = round(text.divergence(model), 6)
    return found


def run(
    setting: Setting, original: PreTrainedModel, calibration: Tensor, texts: dict[str, Text]
) -> dict[str, object]:
    """Quantize a copy of the model and measure it."""
    model = copy.deepcopy(original)
    quantizer = LayerQuantizer(setting)
    start = time.perf_counter()
    calibrate_and_quantize(model, calibration, quantizer)
    quantized = time.perf_counter()
    found = scores(model, texts)
    return {
        **asdict(setting),
        **found,
        "mean_proxy_loss": statistics.fmean(layer.loss for layer in quantizer.measures),
        "layers": [[float(f"{x:.4g}") for x in layer] for layer in quantizer.measures],
        "hidden_error": hidden_error(model, original, calibration[:HIDDEN_ROWS]),
        "quantize_seconds": round(quantized - start, 2),
        "evaluate_seconds": round(time.perf_counter() - quantized, 2),
    }


def finished(out: Path, model: str) -> set[str]:
    """Names of this model's settings in the results so far."""
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    return {line["name"] for line in lines if line["model"] == model}


def append(out: Path, line: dict[str, object]) -> None:
    """Add one JSON line to the results, and show it."""
    text = json.dumps(line)
    print(text, flush=True)
    with out.open("a") as file:
        file.write(text + "\n")


def main() -> None:
    """Run every setting that has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", required=True, help="text; the seed draws rows from it")
    parser.add_argument("--evaluation", required=True, help="held-out text")
    parser.add_argument("--also", help="another text to score, of another domain")
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=128, help="calibration rows of 256 tokens")
    parser.add_argument("--limit", type=int, default=256, help="evaluation windows of 256 tokens")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    beginning, calibration = tokenize(tokenizer, load_text(args.calibration), TOKENIZER)
    sources = {"perplexity": args.evaluation} | ({ALSO: args.also} if args.also else {})
    texts = {}
    for key, text in sources.items():
        scored = tokenize(tokenizer, load_text(text), TOKENIZER)[1]
        texts[key] = Text.of(model, cut_windows(scored, CONTEXT, args.limit, beginning))
    settings = [Setting(**entry) for entry in json.loads(args.settings.read_text())]
    named = {"model": str(args.model)}
    done = finished(args.out, **named)
    if "unquantized" not in done:
        append(args.out, {**named, "name": "unquantized", **scores(model, texts)})
    for setting in settings:
        if setting.name not in done:
            count = setting.rows or args.rows
            rows = torch.tensor(random_windows(calibration, count, CONTEXT, setting.seed, beginning))
            append(args.out, named | run(setting, model, rows, texts))


if __name__ == "__main__":
    main()
