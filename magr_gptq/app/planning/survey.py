"""What every width would cost every layer of a model: few rows' rounding, and a pass forward and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from magr_gptq.allocation.fisher import random_direction
from magr_gptq.allocation.sample import Shared, in_place_of, samples
from magr_gptq.allocation.worth import Sample, Width, Worth
from magr_gptq.app.inspecting.hessians import (
    EXPERTS_NDIM,
    TURN_BYTES,
    LayerInput,
    Layers,
    in_turns,
    layer_inputs,
    linear_layers,
    matrix_of,
)
from magr_gptq.app.planning.alike import head_among
from magr_gptq.app.planning.found import Candidate, Survey
from magr_gptq.app.planning.sizes import LAYOUTS, Shape, header_bytes
from magr_gptq.config import MagRConfig
from magr_gptq.errors import InputError
from magr_gptq.reduction.shrinkage import shrink_, shrinkage
from magr_gptq.toolkits.memory import free_bytes

# of the signs in the directions of the predictions
SIGN_SEED = 0


def parted(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The windows that are rounded for, and those that weigh: every third, as a way back takes two passes.

    One window alone serves both.
    """
    if len(rows) == 1:
        return rows, rows
    weighs = torch.arange(len(rows), device=rows.device) % 3 == 1
    return rows[~weighs], rows[weighs]


def survey(
    model: PreTrainedModel,
    rounding: Sequence[Tensor],
    weighing: Sequence[Tensor],
    widths: Sequence[Width],
    *,
    engine: str,
    sym: bool,
    config: MagRConfig | None,
    advance: Callable[[int, int], None],
    head: bool = False,
) -> Survey:
    """Look at every layer that the engine would quantize.

    Args:
        rounding: batches of token ids [rows, tokens], which a sample of each layer's rows is rounded for.
        weighing: other batches, which tell what that does to the predictions.
        advance: is told how many of how many steps are done.
        head: whether the output layer is quantized, too.

    Raises:
        InputError: a model with fused experts, whose inputs are not seen, or whose numbers are not finite; a
            group of more columns than a layer has; see `layers_to_plan` for the head.
    """
    layers = layers_to_plan(model, engine, head)
    _require_columns(layers, max(width.group_size for width in widths))
    turns = list(in_turns(layers, turn_bytes(model.device)))
    steps = iter(range(1, 10**9))
    total = len(turns) * len(rounding) + len(layers) + len(weighing)

    def step() -> None:
        advance(next(steps), total)

    def run(batch: Tensor) -> None:
        # nothing below the head needs it
        part = model if head_among(turn) else model.base_model
        part(input_ids=batch, use_cache=False)

    tokens = torch.cat([batch.flatten() for batch in rounding])
    stand_ins = [in_place_of(width) for width in widths]
    rounded = list(dict.fromkeys(width for width, _ in stand_ins))
    places, times = [rounded.index(width) for width, _ in stand_ins], torch.tensor([n for _, n in stand_ins])
    worths = {}
    for turn in turns:
        inputs = layer_inputs(model, turn, rounding, step, run)
        for name, sample in _samples(turn, inputs, rounded, config, tokens):
            worths[name] = Worth(sample.to(model.dtype))
            step()
    weigh(model, layers, worths, weighing, step)
    weighed = sum(batch.numel() for batch in weighing)
    candidates = {}
    for name, layer in layers.items():
        # a layer that no token reached costs nothing at any width
        costs = worths[name].divergences(weighed) if name in worths else torch.zeros(len(rounded))
        costs = costs[places] * times
        _require_finite(name, costs)
        candidates[name] = Candidate(shape_of(layer), tuple(costs.tolist()))
    rest = rest_bytes(model, layers, engine, sym)
    return Survey(tuple(widths), candidates, rest, weighed + len(tokens))


def _require_columns(layers: Layers, group_size: int) -> None:
    for name, layer in layers.items():
        columns = shape_of(layer)[1]
        if columns < group_size:
            raise InputError(
                f"{name} has {columns} columns, fewer than a group of {group_size}: give smaller ones, or -1"
            )


def turn_bytes(device: torch.device) -> int:
    """For a turn's Hessians: half of what is free, as samples and passes need room, too."""
    free = free_bytes(device)
    return TURN_BYTES if free is None else min(TURN_BYTES, free // 2)


def layers_to_plan(model: PreTrainedModel, engine: str, head: bool = False) -> Layers:
    """The linear layers that the engine quantizes: GPTQModel those of numbered blocks, llm-compressor all.

    head: GPTQModel takes the output layer, too.

    Raises:
        InputError: fused experts, no linear layer, or a head that is the embeddings or no linear layer.
    """
    experts = next((name for name, p in model.named_parameters() if p.ndim == EXPERTS_NDIM), None)
    if experts and experts.endswith("proj"):
        raise InputError(
            f"{experts} holds several experts in one weight, whose inputs are not seen here; "
            "quantize this model at one width, with --bits"
        )
    layers = linear_layers(model)
    if engine == "gptqmodel":
        layers = {name: layer for name, layer in layers.items() if any(map(str.isdigit, name.split(".")))}
    if not layers:
        raise InputError(f"{model.name_or_path} has not one linear layer below its head")
    return layers | _head(model) if head else layers


def _head(model: PreTrainedModel) -> Layers:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, nn.Linear):
        raise InputError(f"--head: {model.name_or_path} has no linear output layer; leave out --head")
    if head.weight is model.get_input_embeddings().weight:
        raise InputError(
            f"--head: the output layer of {model.name_or_path} is its embeddings, too, which no toolkit "
            "quantizes for GPTQ; leave out --head"
        )
    return {name: head for name, module in model.named_modules() if module is head}


def shape_of(layer: nn.Module) -> Shape:
    """[out, in]."""
    rows, columns = matrix_of(layer).shape  # type: ignore[arg-type]
    return rows, columns


def rest_bytes(model: PreTrainedModel, layers: Layers, engine: str, sym: bool) -> int:
    """What is not quantized, in 16 bits and each tensor once, and the files' headers."""
    packed = {f"{name}.weight" for name in layers}
    others = {name: p.numel() for name, p in model.named_parameters() if name not in packed}
    shapes = {name: shape_of(layer) for name, layer in layers.items()}
    return 2 * sum(others.values()) + header_bytes(shapes, others, LAYOUTS[engine], sym)


def weigh(
    model: PreTrainedModel,
    layers: Layers,
    worths: Mapping[str, Worth],
    batches: Sequence[Tensor],
    step: Callable[[], None],
) -> None:
    """Add what the batches tell about every sample: see `magr_gptq.allocation.worth`.

    g is what comes back of a `random_direction` of each token's prediction. No weight's gradient is computed.
    """
    model.requires_grad_(False)
    handles = [layers[name].register_forward_hook(partial(_watch, worth)) for name, worth in worths.items()]
    embeddings = model.get_input_embeddings()
    handles.append(embeddings.register_forward_hook(lambda _m, _i, output: output.requires_grad_()))
    generator = torch.Generator(model.device).manual_seed(SIGN_SEED)
    try:
        for batch in batches:
            _backward(model, batch.to(model.device), generator)
            step()
    finally:
        for handle in handles:
            handle.remove()


def _watch(worth: Worth, _module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    moved = worth.moved(inputs[0])
    output.register_hook(partial(worth.add, moved))  # type: ignore[no-untyped-call]


@torch.enable_grad()
def _backward(model: PreTrainedModel, rows: Tensor, generator: torch.Generator) -> None:
    # a token's own, not the mean: g is of one prediction
    logits = model(input_ids=rows, use_cache=False).logits.flatten(0, 1)
    logits.backward(random_direction(logits.detach(), generator).to(logits))


def _samples(
    turn: Layers,
    inputs: list[LayerInput],
    widths: Sequence[Width],
    config: MagRConfig | None,
    tokens: Tensor,
) -> Iterator[tuple[str, Sample]]:
    # taken out of the list, as a turn's Hessians are as many as there is memory for
    while inputs:
        given = inputs.pop(0)
        hessian = given.hessian.div_(given.tokens)
        weights = [matrix_of(turn[name]).float() for name in given.names]
        for name, weight in zip(given.names, weights, strict=True):
            _require_finite(name, hessian, weight)
        if not hessian.diagonal().any():
            continue
        shrink_(hessian, shrinkage(hessian, given.tokens))
        of_rows = None
        if head_among(given.names):
            of_rows = tokens.bincount(minlength=len(weights[0])).to(hessian.device)
        found = samples(weights, Shared(hessian), widths, config, frequency=of_rows)
        yield from zip(given.names, found, strict=True)


def _require_finite(name: str, *tensors: Tensor) -> None:
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise InputError(
            f"{name}: its input, weight or gradient holds NaN or infinity; give an undamaged model, in "
            "bfloat16 or float32"
        )
