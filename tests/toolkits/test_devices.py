"""On devices of their own: nothing of two devices meets in one operation. No machine here has one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretended_device import Pretending, data, on
from problems import hessian_of, weight_of
from torch import Tensor

pytest.importorskip("gptqmodel")

from magr_gptq import MagRConfig
from magr_gptq.reduction.target import Half
from magr_gptq.rounding.rounded import Rounded
from magr_gptq.rounding.step import least_error_factor
from magr_gptq.toolkits import roads
from magr_gptq.toolkits.gptqmodel import gram
from magr_gptq.toolkits.gptqmodel.rounding import Rounding
from magr_gptq.toolkits.layer_step import Done, Given, quantize_layer
from magr_gptq.toolkits.pairs import Pairs
from magr_gptq.toolkits.quantizer import shrunk_grid
from magr_gptq.toolkits.undamaged import UndamagedChain

pytestmark = pytest.mark.environments("modern")
BITS, GROUP, ROWS, COLUMNS, TOKENS = 3, 16, 6, 64, 100
LOWEST, HIGHEST = 0, 2**BITS - 1


@pytest.fixture(autouse=True)
def pretending() -> Iterator[None]:
    with Pretending():
        yield


def halves(place: int | None) -> list[Half]:
    """Of both chains, on the device of this number; None is the CPU."""
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(2, TOKENS, COLUMNS, generator=generator) for _ in range(2)]
    return [
        Half.of(*(part if place is None else on(part, place) for part in (x, 0.1 * y)))
        for x, y in zip(*made, strict=True)
    ]


def to_grids(rows: Tensor, factors: Tensor, hessian: Tensor) -> Rounded:
    """A toolkit that rounds to nearest, each group on the grid of its best factor."""
    groups = rows.view(len(rows), -1, GROUP)
    scale = groups.abs().amax(2) * 2 / HIGHEST
    zero = torch.full_like(scale, (HIGHEST + 1) / 2)
    best = [
        least_error_factor(
            groups[:, g], scale[:, g, None], zero[:, g, None], factors, lowest=LOWEST, highest=HIGHEST
        )
        for g in range(groups.shape[1])
    ]
    scale = scale * torch.cat(best, 1)
    codes = (groups / scale[..., None] + zero[..., None]).round().clamp(LOWEST, HIGHEST)
    weight = ((codes - zero[..., None]) * scale[..., None]).flatten(1)
    return Rounded(weight, scale, zero, torch.arange(COLUMNS, device=rows.device) // GROUP)


class Quantizer:
    """A toolkit's, whose grid is on the CPU."""

    def find_params(self, x: Tensor, weight: bool = False) -> None:  # noqa: ARG002
        self.scale, self.zero = torch.ones(len(x), 1), torch.full((len(x), 1), 4.0)


def layer_of(place: int | None, halves_at: int | None, config: MagRConfig, desc: bool = False) -> Given:
    """The layer on the device of this number; None is the CPU."""
    weight, hessian = weight_of(ROWS, COLUMNS), hessian_of(COLUMNS)
    if place is not None:
        weight, hessian = on(weight, place), on(hessian, place)
    order = hessian.diagonal().argsort(descending=True) if desc else None
    plan = config.resolve(BITS, GROUP, order, torch.float16)
    return Given(weight, hessian, plan, tokens=TOKENS, in_order=not desc, halves=halves(halves_at))


@pytest.mark.parametrize("desc", [False, True])
@pytest.mark.parametrize(
    "config", [MagRConfig(), MagRConfig(preset="paper", iterations=3), MagRConfig(refine=3, mirror=False)]
)
@pytest.mark.parametrize("halves_at", [0, 1])
def test_a_layer_is_done_on_its_device_as_on_the_cpu(config: MagRConfig, desc: bool, halves_at: int) -> None:
    done = quantize_layer(layer_of(0, halves_at, config, desc), to_grids)
    same = quantize_layer(layer_of(None, None, config, desc), to_grids)
    assert isinstance(done, Done)
    assert isinstance(same, Done)
    found = done.settled.rounded.weight
    assert found.device.type == "meta"
    torch.testing.assert_close(data(found), same.settled.rounded.weight)


@pytest.mark.parametrize("skipped", [1, 2])
def test_a_narrower_road_keeps_to_its_devices(skipped: int, monkeypatch) -> None:
    real = roads._roads
    monkeypatch.setattr(roads, "_roads", lambda passage: real(passage)[skipped:])
    with pytest.warns(UserWarning, match="one by one"):
        done = quantize_layer(layer_of(0, 0, MagRConfig()), to_grids)
    assert isinstance(done, Done)
    assert done.settled.rounded.weight.device.type == "meta"


def test_sums_of_several_devices_come_together_when_they_are_asked_for() -> None:
    """GPTQModel runs batches on all devices at once, and any may be the first to end."""
    pairs, same = Pairs(), Pairs()
    generator = torch.Generator().manual_seed(0)
    for number, place in ((1, 1), (0, 0), (3, 1), (2, 0)):
        damaged, lacking = torch.randn(2, 1, TOKENS, COLUMNS, generator=generator)
        pairs.add(number, on(damaged, place), on(lacking, place))
        same.add(number, damaged, lacking)
    # asked twice, nothing counts twice
    for found, half in zip(pairs.halves and pairs.halves, same.halves, strict=True):
        assert str(found.gram.device) == "meta:1"
        torch.testing.assert_close(data(found.gram), half.gram)
        torch.testing.assert_close(data(found.lacking), half.lacking)
        assert found.whole == half.whole


def test_layers_that_share_sums_may_ask_at_the_same_time(monkeypatch) -> None:
    """GPTQModel rounds q, k and v on several devices at once."""
    pairs, move = Pairs(), Half.to
    for number in range(4):
        pairs.add(number, *(on(torch.randn(1, TOKENS, COLUMNS), number % 2) for _ in range(2)))

    def slow(self: Half, device: torch.device) -> Half:
        time.sleep(0.1)
        return move(self, device)

    def ask(_: int) -> list[int]:
        with Pretending():
            return [half.whole for half in pairs.halves]

    monkeypatch.setattr(Half, "to", slow)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(ask, range(3))) == [[1, 2]] * 3


def test_where_sums_cannot_come_together_there_are_none(monkeypatch) -> None:
    pairs = Pairs()
    for number in range(4):
        pairs.add(number, *(on(torch.randn(1, TOKENS, COLUMNS), number % 2) for _ in range(2)))

    def short(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Half, "to", short)
    with pytest.warns(UserWarning, match="sums of all devices"):
        assert pairs.halves is None
    assert pairs.halves is None


def test_a_toolkit_may_go_on_with_a_grid_on_the_cpu() -> None:
    """GPTQModel does where a device's memory runs out."""
    quantizer = Quantizer()
    with shrunk_grid(quantizer, factors=on(torch.tensor([[0.5]]).repeat(ROWS, 1)), bits=BITS):
        quantizer.find_params(torch.randn(ROWS, COLUMNS), weight=True)
    assert torch.equal(quantizer.scale, torch.full((ROWS, 1), 0.5))


def test_the_rows_that_a_toolkit_gives_back_lie_on_one_device() -> None:
    """GPTQModel's lie on the layer's, and their grids on the CPU where the device's memory ran out."""

    class Task:
        _tp_pad_cols, qcfg, quantizer = 0, SimpleNamespace(bits=BITS), Quantizer()
        module = torch.nn.Linear(COLUMNS, ROWS)

        def _shared_factor_key(self, ordering: object) -> tuple[object]:
            return (ordering,)

    def quantize() -> tuple[Any, ...]:
        grids = torch.ones(ROWS, 1), torch.ones(ROWS, 1), torch.zeros(COLUMNS, dtype=torch.int32)
        return on(torch.ones(ROWS, COLUMNS)), *grids, 0.0, 0.0, 0.0, 0

    rounded = Rounding(Task(), quantize, "magr")(on(weight_of(ROWS, COLUMNS)), torch.ones(ROWS, 1), None)
    assert {tensor.device.type for tensor in vars(rounded).values() if isinstance(tensor, Tensor)} == {"meta"}


def test_products_of_one_batch_may_be_made_on_several_devices() -> None:
    """GPTQModel goes on with the next padded row on the CPU where a device's memory runs out."""
    products = iter([on(torch.eye(3)), torch.eye(3)])
    wrapped = gram._process_batch(lambda *_: (4, next(products), None))
    with gram.of_batch() as made:
        wrapped(None, None)
        wrapped(None, None)
    assert torch.equal(made[0], 2 * torch.eye(3))


def test_a_product_without_memory_is_made_by_the_pairs_again(monkeypatch) -> None:
    wrapped = gram._process_batch(lambda *_: (4, torch.eye(3), None))

    def short(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    with gram.of_batch() as made:
        wrapped(None, None)
        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "__add__", short)
            wrapped(None, None)
        wrapped(None, None)
    assert made == []


def test_a_layer_may_be_on_another_device_than_its_block() -> None:
    """GPTQModel's layers move what they are given to where they are."""
    chain, pairs = UndamagedChain(), Pairs()
    chain._original = SimpleNamespace(written_at=lambda _: None)
    chain._here.seen.taken["up"] = on(torch.randn(1, TOKENS, COLUMNS), 0)
    chain.pair("up", pairs, on(torch.randn(1, TOKENS, COLUMNS), 1), on(torch.randn(1, TOKENS, ROWS), 1))
    assert {str(half.gram.device) for half in pairs.halves} == {"meta:1"}
