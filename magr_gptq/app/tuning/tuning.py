"""From a checkpoint and the unquantized model to the numbers that predict what that model does."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from magr_gptq.app.inputs import Model
from magr_gptq.app.tuning.checkpoint import Checkpoint
from magr_gptq.app.tuning.heads import Head, decoder_of
from magr_gptq.app.tuning.job import Tuned
from magr_gptq.app.tuning.state import State
from magr_gptq.app.tuning.student import BIAS, as_saved, make_student, offsets
from magr_gptq.app.tuning.windows import Windows
from magr_gptq.errors import InputError
from magr_gptq.tuning.descent import descent
from magr_gptq.tuning.loss import divergence
from magr_gptq.tuning.stopping import Best
from magr_score.process import Tell

# passes over the windows at most, and steps and evaluations in each; measured in eval/studies/tune
PASSES, STEPS_A_PASS, EVALUATIONS_A_PASS = 2, 32, 2
# so that many windows take no longer than the quantization by them does
MOST_STEPS = 48
# of a window: what is kept for the way back is as much as this takes in all blocks
TOKENS_AT_ONCE = 2048
# of those, logits in float32 are made of so many at a time
POSITIONS_AT_ONCE = 512
SEED = 0


@dataclass(frozen=True)
class Text:
    """Windows [windows, tokens], and the unquantized model's last hidden state of them, on the CPU."""

    rows: Tensor
    hidden: Tensor

    def __getitem__(self, places: Tensor | slice) -> Text:
        return Text(self.rows[places], self.hidden[places])

    def at_once(self) -> Iterator[Text]:
        """A few windows at a time."""
        count = max(1, TOKENS_AT_ONCE // self.rows.shape[1])
        for start in range(0, len(self.rows), count):
            yield self[start : start + count]


@dataclass(frozen=True)
class Pupil:
    """The quantized model, how many of its layers are packed, its head, and the unquantized model's head."""

    model: Any
    layers: int
    head: Head
    original: Head

    def loss(self, text: Text, backward: bool) -> float:
        """The sum of the divergences over all positions; its gradients are added up where asked for."""
        device = next(self.model.parameters()).device
        hidden = decoder_of(self.model)(input_ids=text.rows.to(device), use_cache=False).last_hidden_state
        # the head's part of the way back is walked as soon as a part of the positions has its logits
        leaf = hidden.detach().requires_grad_(backward)
        total = 0.0
        states = (leaf.flatten(0, 1), text.hidden.to(device).flatten(0, 1))
        pairs = (torch.split(part, POSITIONS_AT_ONCE) for part in states)
        for own, wanted in zip(*pairs, strict=True):
            found = divergence(self.original(wanted[None]), self.head(own[None]))
            if backward:
                found.backward()  # type: ignore[no-untyped-call]
            total += float(found.detach())
        if backward:
            hidden.backward(leaf.grad)
        return total


def tune(
    files: Model, checkpoint: Checkpoint, windows: Windows, cut: str, state: State, tell: Tell
) -> tuple[Tuned, dict[str, Tensor]]:  # fmt: skip
    """Fit scales, norms and biases; what came of it, and every tensor that was free by the file's name.

    Args:
        files: of the unquantized model. cut: how windows begin.
        state: where it goes on if it was killed. tell: see `magr_gptq.app.processes`.

    Raises:
        InputError: checkpoint and unquantized model don't belong together.
    """
    start = time.perf_counter()
    tell("stage", text="running the unquantized model")
    model = load_original(files.folder)
    original = Head(model)
    text, held_out = (
        Text(rows, last_hidden(model, original, rows)) for rows in (windows.training, windows.held_out)
    )
    tell("stage", text="reading the checkpoint")
    freed = make_student(model, checkpoint)
    best, steps = descend(
        Pupil(model, len(checkpoint.layers), Head(model), original), text, held_out, state, tell
    )
    with torch.no_grad():
        for offset, value in zip(offsets(model), best.values, strict=True):
            offset.copy_(value)
    return Tuned(
        divergences=best.losses, kept=best.at, steps=steps, seconds=time.perf_counter() - start,
        numbers=count(freed), seqlen=text.rows.shape[1], windows=len(text.rows), unseen=windows.unseen,
        held_out=len(held_out.rows), beginning=files.beginning(cut),
        versions={name: version(name) for name in ("magr-gptq", "torch", "transformers")},
    ), as_saved(freed, checkpoint)  # fmt: skip


def load_original(folder: Path) -> Any:
    """The unquantized model: in float32 on a CPU; on a GPU in bfloat16, whose exponent gradients need."""
    from transformers import AutoModelForCausalLM

    on_gpu = torch.cuda.is_available()
    # loaded in that dtype, not cast to it: so RoPE's frequencies stay in float32
    dtype = torch.bfloat16 if on_gpu else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=dtype)
    return (model.cuda() if on_gpu else model).eval()


@torch.no_grad()
def last_hidden(model: Any, head: Head, rows: Tensor) -> Tensor:
    """What its decoder makes of every token, [windows, tokens, width] on the CPU.

    Raises:
        InputError: the head can't be run by itself.
    """
    first = rows[:1].to(model.device)
    decoder, found = decoder_of(model), []
    head.check(
        decoder(input_ids=first, use_cache=False).last_hidden_state,
        model(input_ids=first, use_cache=False).logits,
    )
    for part in torch.split(rows, max(1, TOKENS_AT_ONCE // rows.shape[1])):
        found.append(decoder(input_ids=part.to(model.device), use_cache=False).last_hidden_state.cpu())
    return torch.cat(found)


def descend(pupil: Pupil, text: Text, held_out: Text, state: State, tell: Tell) -> tuple[Best, int]:
    """All steps, or until held-out text has had enough; the best values, and how many steps there were.

    Raises:
        InputError: the checkpoint predicts nothing finite.
    """
    free = offsets(pupil.model)
    count = len(text.rows)
    size = -(-count // STEPS_A_PASS)
    a_pass = -(-count // size)
    steps, every = min(PASSES * a_pass, MOST_STEPS), max(1, a_pass // EVALUATIONS_A_PASS)
    start = evaluate(pupil, held_out)
    if not math.isfinite(start):
        raise InputError("the checkpoint's predictions are not finite on the held-out text; give another")
    adam, schedule = descent(free, steps, start, pupil.layers)
    done, best = state.load(free, (adam, schedule))
    if not best.losses:
        best.offer(start, free)
    for step in range(done, steps):
        if best.exhausted:
            return best, step
        batch = text[order(step // a_pass, count)[step % a_pass * size :][:size]]
        take_step(pupil, batch, adam)
        schedule.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            best.offer(evaluate(pupil, held_out), free)
            state.save(step + 1, best, free, (adam, schedule))
        tell("steps", done=step + 1, total=steps, losses=best.losses)
    return best, steps


def order(number: int, count: int) -> Tensor:
    """The order of the windows in a pass, the same whenever it is asked for."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(SEED + number))


def take_step(pupil: Pupil, batch: Text, adam: torch.optim.Optimizer) -> None:
    """Gradients of the mean over the batch's positions, a few windows at a time, and one step."""
    adam.zero_grad()
    for part in batch.at_once():
        pupil.loss(part, backward=True)
    for group in adam.param_groups:
        for offset in group["params"]:
            if offset.grad is not None:
                offset.grad /= batch.rows.numel()
    adam.step()


@torch.no_grad()
def evaluate(pupil: Pupil, text: Text) -> float:
    """Divergence in nats a token."""
    return sum(pupil.loss(part, backward=False) for part in text.at_once()) / text.rows.numel()


def count(freed: dict[str, nn.Module]) -> dict[str, int]:
    """How many numbers of each kind are free."""
    found = {"scales": 0, "norms": 0, "biases": 0}
    for name, module in freed.items():
        own = name.rpartition(".")[2]
        kind = "biases" if own == BIAS else "norms" if own == "weight" else "scales"
        found[kind] += getattr(module, "scales" if kind == "scales" else own).numel()
    return found
