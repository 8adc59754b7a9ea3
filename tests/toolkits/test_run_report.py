"""What became of every layer of a run: the report, its totals, its warning."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.layers import UNSEEN, InputsSeen, full_report, quantized_layers, refuse_shared
from magr_gptq.errors import InputError
from magr_gptq.toolkits.report import LayerReport, RunReport, reported_run


class Pair(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(4, 4)
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 4)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x)


@pytest.mark.parametrize("whole", [True, False], ids=["module", "weight"])
def test_bad_input_layers_that_share(whole: bool) -> None:
    model = Pair()
    refuse_shared(model)
    if whole:
        model.second = model.first
    else:
        model.second.weight = model.first.weight
    with pytest.raises(InputError, match=r"first and second share one weight .* --no-magr"):
        refuse_shared(model)


def test_layers_without_input_are_seen() -> None:
    model = Pair()
    with InputsSeen(model) as seen:
        model(torch.ones(2, 4))
        model.second(torch.ones(0, 4))
    assert "first" in seen
    assert "second" not in seen
    assert not model.first._forward_pre_hooks


def test_a_report_has_every_layer_once() -> None:
    job = Job("model", "out", "text", bits=3)
    seen = RunReport()
    seen.dropped = 2
    seen.add(LayerReport("a", 3, 128, largest_before=2.0, largest_after=1.0))
    seen.add(LayerReport("b", 3, 128, largest_before=2.0, largest_after=1.0))
    seen.add(LayerReport("b", 3, 128, skipped="tried again"))
    seen.add(LayerReport("f", 3, 128, fallback="as MagR saw it"))
    fallbacks = {"d": "starved", "e": "unplaced", "f": "as the toolkit did"}
    report = full_report(job, seen, ["a", "b", "c", "d"], fallbacks)
    assert report.totals()["dropped_rows"] == 2
    assert "2 calibration rows were too short" in report.warning()
    assert [(layer.name, layer.outcome, layer.reason) for layer in report.layers] == [
        ("a", "reduced", None),
        ("b", "skipped", "tried again"),
        ("c", "skipped", UNSEEN),
        ("d", "fallen back", "starved"),
        ("f", "fallen back", "as MagR saw it"),
        ("e", "fallen back", "unplaced"),
    ]
    plain = full_report(Job("model", "out", "text", magr=None), RunReport(), ["a", "b"], {"b": "starved"})
    assert plain.totals() == {
        "layers": 2,
        "dropped_rows": 0,
        "outcomes": {"plain": 1, "fallen back": 1},
        "reasons": [{"outcome": "fallen back", "reason": "starved", "layers": 1}],
    }


def test_layers_with_fewer_tokens_than_columns_are_named_with_the_numbers() -> None:
    report = RunReport()
    report.add(LayerReport("plenty", 3, 64, tokens=768, columns=768))
    report.add(LayerReport("uncounted", 3, 64, columns=768))
    assert report.few_tokens() is None
    assert "few_tokens" not in report.totals()
    report.add(LayerReport("experts.1", 3, 64, tokens=400, columns=768))
    report.add(LayerReport("experts.2", 3, 64, tokens=1300, columns=11008))
    told = "2 of 4 layers had fewer calibration tokens than columns, such as experts.2 with 1,300 for 11,008"
    assert report.few_tokens() == report.totals()["few_tokens"] == told
    assert told in report.summary()
    # which are no fault: MagR shrinks what few tokens say
    assert "calibration tokens" not in (report.warning() or "")


def test_the_warning_starts_above_a_tenth() -> None:
    report = RunReport()
    for index in range(18):
        report.add(LayerReport(str(index), 4, 128, largest_before=2.0, largest_after=1.0))
    report.add(LayerReport("x", 4, 128, skipped="one reason"))
    report.add(LayerReport("y", 4, 128, fallback="another"))
    assert report.warning() is None
    report.add(LayerReport("z", 4, 128, skipped="one reason"))
    assert report.warning() == "3 of 21 layers (14%): 2 skipped: one reason; 1 fallen back: another"
    assert len(report.reduced) == 18
    assert json.dumps(report.to_dict()).count('"outcome": "skipped"') == 2
    assert RunReport().warning() is None


def test_packed_layers_are_found_by_their_buffers() -> None:
    model = Pair()
    model.second.register_buffer("qweight", torch.zeros(1))
    assert quantized_layers(model) == ["second"]


@pytest.mark.parametrize("skipped", [1, 2])
def test_a_run_in_python_warns_where_more_than_a_tenth_was_left_out(skipped: int, caplog) -> None:
    with reported_run(SimpleNamespace()) as report:
        for layer in range(10):
            why = "starved" if layer < skipped else None
            report.add(LayerReport(f"layer {layer}", 3, 128, skipped=why))
    warned = "not as intended: 2 of 10 layers (20%): 2 skipped: starved" in caplog.text
    assert warned == (skipped == 2)


def test_layers_that_came_near_their_own_output_for_want_of_the_models_are_counted() -> None:
    report = RunReport()
    report.add(LayerReport("a", 3, 64, largest_after=1.0, correction=0.4))
    assert "own output" not in report.summary()
    report.add(LayerReport("b", 3, 64, largest_after=1.0, own_output=True))
    assert "; 1 came near their own output, as the unquantized model's was not to be had" in report.summary()
