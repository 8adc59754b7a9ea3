r"""Coordinate descent for the output of whole blocks, on a finished GPTQ checkpoint of a Llama, in memory.

    magr-gptq quantize MODEL --bits 2 --calibration FILE --samples 128 --seqlen 256 --out CHECKPOINT
    python -m eval.studies.block.run CHECKPOINT --original MODEL --calibration FILE --evaluation FILE

With X̂ a block's inputs behind quantized blocks, and Y what the block returns in the unquantized model,

    L(Q) = ‖block(X̂; Q) − Y‖²      L(Q + Δ) ≈ L + ⟨G, Δ⟩ + Σᵣ aᵣ·ΔᵣHΔᵣᵀ

for one of its layers: G = ∂L/∂Q, H the Hessian of its inputs, and aᵣ the mean square of ∂block/∂yᵣ, which one
product with random signs estimates. Codes move by coordinate descent on that, for q, k, v, then o, then gate
and up, then down. One half of the windows gives G, H and a. Of three lengths η of G the one is kept that the
other half likes best, if it likes any. The next block's inputs come from what was kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from magr_gptq.app.inputs import read_model
from magr_gptq.app.tuning.checkpoint import Checkpoint, read_checkpoint
from magr_gptq.rounding.sweep import coordinate_descent

STAGES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",),
)  # fmt: skip
LENGTHS = (1.0, 0.5, 0.25)
DAMPING = 0.01
AT_ONCE = 8


@dataclass
class Moments:
    """Of one layer: G and H, summed, and a."""

    gradient: Tensor
    hessian: Tensor
    curvature: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Moments:
        """Of a layer that has seen nothing yet."""
        rows, columns = weight.shape
        return cls(torch.zeros(rows, columns), torch.zeros(columns, columns), torch.zeros(rows))

    def add(self, inputs: Tensor, slopes: Tensor, signed: Tensor) -> None:
        """Of tokens: x, ∂L/∂y, and the signed sum of ∂block/∂y."""
        self.gradient += slopes.T @ inputs
        self.hessian += inputs.T @ inputs
        self.curvature += signed.square().sum(0)


@dataclass
class Block:
    """A quantized block, what enters it, and what the unquantized model's returns; one entry a batch."""

    module: nn.Module
    scales: dict[str, Tensor]
    codes: tuple[int, int]
    arguments: dict[str, Any]
    inputs: Sequence[Tensor]
    targets: Sequence[Tensor]

    def __call__(self, inputs: Tensor) -> Tensor:
        return _first(self.module(inputs, **self.arguments))

    @torch.no_grad()
    def loss(self, batches: range) -> float:
        """L of these batches."""
        return sum(float((self(self.inputs[i]) - self.targets[i]).square().sum()) for i in batches)

    def moments(self, names: Sequence[str], batches: range) -> list[Moments]:
        """Of layers that don't see each other's outputs."""
        found = [Moments.of(self.layer(name).weight) for name in names]
        tokens = 0
        for i in batches:
            seen, outputs = self._seen(names, self.inputs[i])
            ends = [end for _, end in seen]
            loss = (outputs - self.targets[i]).square().sum()
            slopes = torch.autograd.grad(loss, ends, retain_graph=True)
            signs = torch.randint_like(outputs, 0, 2) * 2 - 1
            drawn = torch.autograd.grad((outputs * signs).sum(), ends)
            for moments, (start, _), slope, one in zip(found, seen, slopes, drawn, strict=True):
                moments.add(*(each.flatten(0, 1) for each in (start, slope, one)))
            tokens += outputs[..., 0].numel()
        for moments in found:
            moments.curvature /= tokens
        return found

    def _seen(self, names: Sequence[str], inputs: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Inputs and outputs of these layers, and the block's output, which depends on them."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def watch(name: str, start: Tensor, end: Tensor) -> Tensor:
            end = end.detach().requires_grad_() if not end.requires_grad else end
            seen[name] = (start.detach(), end)
            return end

        handles = [
            self.module.get_submodule(name).register_forward_hook(
                lambda _, start, end, name=name: watch(name, start[0], end)
            )
            for name in names
        ]
        outputs = self(inputs)
        for handle in handles:
            handle.remove()
        return [seen[name] for name in names], outputs

    def moved(self, name: str, moments: Moments, length: float) -> Tensor:
        """The layer's weight after one sweep."""
        quantized = self.layer(name).weight
        damping = DAMPING * moments.hessian.diagonal().mean()
        hessian = moments.hessian + damping * torch.eye(len(moments.hessian))
        slope = moments.gradient / (2 * moments.curvature[:, None]).clamp_min(torch.finfo().tiny)
        aim = quantized - length * torch.linalg.solve(hessian, slope, left=False)
        scales = self.scales[name]
        return coordinate_descent(
            quantized, aim, hessian, scales, torch.zeros_like(scales),
            lowest=self.codes[0], highest=self.codes[1], sweeps=1,
        )  # fmt: skip

    def descend(self) -> tuple[list[float], float]:
        """One round: the length kept in each stage, 0 where none was; of L held out, what is left."""
        made, held = range(0, len(self.inputs), 2), range(1, len(self.inputs), 2)
        before = least = self.loss(held)
        lengths = []
        for names in STAGES:
            moments = self.moments(names, made)
            kept, length = self.weights(names), 0.0
            for tried in LENGTHS:
                moved = {name: self.moved(name, one, tried) for name, one in zip(names, moments, strict=True)}
                self.put(moved)
                if (loss := self.loss(held)) < least:
                    least, best, length = loss, moved, tried
                self.put(kept)
            self.put(best if length else kept)
            lengths.append(length)
        return lengths, least / before

    def layer(self, name: str) -> nn.Linear:
        """By its name within the block."""
        return self.module.get_submodule(name)

    def weights(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Of these layers, as they are."""
        return {name: self.layer(name).weight.clone() for name in names}

    def put(self, weights: dict[str, Tensor]) -> None:
        """Use these."""
        for name, weight in weights.items():
            self.layer(name).weight.copy_(weight)


def run(args: argparse.Namespace) -> None:
    """Descend block by block, and print the divergence before and after."""
    teacher, student = (_loaded(args.original) for _ in range(2))
    checkpoint = read_checkpoint(args.checkpoint)
    scales, codes = _fill(student, checkpoint)
    files = read_model(str(args.original), False)
    drawn = {"seqlen": args.seqlen, "cut": "tokenizer"}
    rows = files.windows(str(args.calibration), samples=args.samples, seed=args.seed, **drawn).rows
    scored = files.windows(str(args.evaluation), samples=args.limit, seed=0, **drawn).rows
    record = {
        "checkpoint": args.checkpoint.name,
        "before": divergence(student, teacher, scored),
        "blocks": [],
    }
    batches = torch.tensor(rows).split(AT_ONCE)
    (targets, arguments), (inputs, _) = _entering(teacher, batches), _entering(student, batches)
    for place, module in enumerate(student.model.layers):
        targets = _through(teacher.model.layers[place], targets, arguments)
        own = {name: scales[f"model.layers.{place}.{name}"] for names in STAGES for name in names}
        lengths, left = Block(module, own, codes, arguments, inputs, targets).descend()
        inputs = _through(module, inputs, arguments)
        record["blocks"].append({"lengths": lengths, "held_out": left})
        print(f"block {place}: {lengths}, {left:.4f} of the loss held out", flush=True)
    record["after"] = divergence(student, teacher, scored)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"divergence {record['before']:.4f} -> {record['after']:.4f}")


def _loaded(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)


def _fill(model: Any, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Give the model the checkpoint's tensors; the scales of all weights, and the least and largest code."""
    grids = {layer: checkpoint.grid(layer) for layer in checkpoint.layers}
    weights = {f"{layer}.weight": grid.weight for layer, grid in grids.items()}
    kept = {name: checkpoint.tensor(name) for name in checkpoint.others()}
    model.load_state_dict({**weights, **kept}, strict=False)
    ends = [end for grid in grids.values() for end in grid.codes.aminmax()]
    return {layer: grid.scales[:, grid.group] for layer, grid in grids.items()}, (
        int(min(ends)),
        int(max(ends)),
    )


def _entering(model: Any, batches: Sequence[Tensor]) -> tuple[list[Tensor], dict[str, Any]]:
    """What the first block is called with: hidden states of each batch, and what all batches share."""
    calls: list[tuple[Tensor, dict[str, Any]]] = []
    handle = model.model.layers[0].register_forward_pre_hook(
        lambda _, given, named: calls.append((given[0], named)), with_kwargs=True
    )
    for batch in batches:
        model.model(batch, use_cache=False)
    handle.remove()
    return [states for states, _ in calls], calls[0][1]


@torch.no_grad()
def _through(module: nn.Module, inputs: Sequence[Tensor], arguments: dict[str, Any]) -> list[Tensor]:
    return [_first(module(x, **arguments)) for x in inputs]


def _first(found: Any) -> Tensor:
    return found[0] if isinstance(found, tuple) else found


@torch.no_grad()
def divergence(student: Any, teacher: Any, rows: list[list[int]]) -> float:
    """Of the predictions from the unquantized model's, in nats a token."""
    total = torch.zeros((), dtype=torch.float64)
    for batch in torch.tensor(rows).split(AT_ONCE):
        true, found = (model(batch).logits.log_softmax(-1) for model in (teacher, student))
        total += (true.exp() * (true - found)).sum()
    return float(total) / torch.tensor(rows).numel()


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--original", type=Path, required=True, help="the unquantized model")
    parser.add_argument("--calibration", type=Path, required=True, help="text file")
    parser.add_argument("--evaluation", type=Path, required=True, help="held-out text file")
    parser.add_argument("--samples", type=int, default=128, help="calibration windows")
    parser.add_argument("--seqlen", type=int, default=256, help="tokens of a window")
    parser.add_argument("--limit", type=int, default=64, help="scored windows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the record, a JSON file")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
