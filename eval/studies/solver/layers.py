"""The layers that `run.py` measures: shapes of published models, and the demo's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from eval.lib.shapes import MODELS, layer_counts

DEMO = Path(str(files("magr_gptq.app") / "demo"))
CONDITION = 1e6
# real Hessians have a few directions far above the rest
DOMINANT, DOMINANCE = 4, 30
# first and last block of the demo's model: its q, gate and down projections
DEMO_LAYERS = {"block 0 q": 0, "block 0 gate": 4, "block 0 down": 6, "block 5 gate": 39, "block 5 down": 41}
CALIBRATION = (64, 256)


@dataclass(frozen=True)
class Layer:
    """One layer to measure.

    count: how often its model has this shape.
    condition: of the Hessian; None takes layer `demo` of the demo's model, weight and Hessian.
    """

    name: str
    rows: int
    columns: int
    count: int = 1
    condition: float | None = CONDITION
    demo: int = -1


def of_shape(rows: int, columns: int, count: int = 1, condition: float = CONDITION) -> Layer:
    """A layer that is made up."""
    return Layer(f"{rows}x{columns} condition {condition:.0e}", rows, columns, count, condition)


def of_demo(name: str, index: int) -> Layer:
    """A layer of the demo's model."""
    rows, columns = {"q": (256, 256), "gate": (768, 256), "down": (256, 768)}[name.split()[-1]]
    return Layer(f"demo {name}", rows, columns, condition=None, demo=index)


SUITES: dict[str, list[Layer]] = {
    "squares": [of_shape(size, size) for size in (256, 512, 1024, 2048, 4096)],
    "spectra": [of_shape(512, 512, condition=condition) for condition in (1e4, 1e8)],
    "demo": [of_demo(name, index) for name, index in DEMO_LAYERS.items()],
    # one block of a 671B mixture: gate and up, then down, of its routed experts
    "experts": [of_shape(2048, 7168, 2 * 256), of_shape(7168, 2048, 256)],
    **{
        model: [of_shape(*shape, count) for shape, count in sorted(layer_counts(model).items())]
        for model in MODELS
    },
}


def make(layer: Layer, seed: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Weight [rows, columns] and Hessian [columns, columns], float32; each device has numbers of its own."""
    if layer.condition is None:
        weight, hessian = demo_layers()[layer.demo]
        return weight.to(device), hessian.to(device)
    generator = torch.Generator(device).manual_seed(seed)
    weight = torch.randn(layer.rows, layer.columns, generator=generator, device=device) / layer.columns**0.5
    weight[torch.rand(weight.shape, generator=generator, device=device) < 1e-3] *= 5
    return weight, made_up_hessian(layer.columns, layer.condition, generator)


def made_up_hessian(columns: int, condition: float, generator: torch.Generator) -> Tensor:
    """B·diag(s)·Bᵀ with a power-law spectrum s, s₁/sₙ = condition, and a few directions 30 times above it.

    B is orthogonal, from two rounds of random signs and the discrete Hartley transform: as dense as a
    random basis, without a QR.
    """
    device = generator.device
    spectrum = torch.arange(1, columns + 1, dtype=torch.float64, device=device)
    spectrum **= -math.log(condition / DOMINANCE) / math.log(columns)
    spectrum[:DOMINANT] *= DOMINANCE
    signs = torch.randint(0, 2, (2, columns), generator=generator, dtype=torch.float64, device=device) * 2 - 1
    basis = hartley(signs[1] * hartley(torch.diag(signs[0])))
    return (basis * spectrum @ basis.T).float()


def hartley(x: Tensor) -> Tensor:
    """The orthonormal Hartley transform along the last dimension."""
    transformed = torch.fft.fft(x, norm="ortho")
    return transformed.real - transformed.imag


@cache
def demo_layers() -> list[tuple[Tensor, Tensor]]:
    """Weight and Hessian of every linear layer of the demo's model on its calibration text."""
    # transformers is needed for these layers alone
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from eval.lib.simulate import calibrate_and_quantize
    from magr_gptq.app.text import load_text, random_windows

    found = []

    def keep(weight: Tensor, hessian: Tensor) -> Tensor:
        found.append((weight, hessian))
        return weight

    model = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32).eval()
    text = load_text(str(DEMO / "text" / "calibration.txt"))
    tokens = AutoTokenizer.from_pretrained(DEMO / "model")(text)["input_ids"]
    calibrate_and_quantize(model, torch.tensor(random_windows(tokens, *CALIBRATION, seed=0)), keep)
    return found
