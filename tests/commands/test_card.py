"""The model card: what it says of a job and its outcome, and what it keeps to itself."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest
import yaml
from places import ROOT

from magr_gptq.app.quantizing.card import CITATION, model_card
from magr_gptq.app.quantizing.engines import ENGINES, LOADING
from magr_gptq.app.quantizing.job import Job, Outcome
from magr_gptq.app.quantizing.runtimes import RUNTIMES
from magr_gptq.toolkits import TOOLKITS
from magr_score.loaders import LOADERS

JOB = Job("some/Model-1B", "/home/me/out", "/home/me/prose.txt", bits=3, group_size=64, samples=5, seed=7)
LAYERS = [
    {"outcome": "reduced", "largest_before": 2.0, "largest_after": 1.0},
    {"outcome": "reduced", "largest_before": 2.0, "largest_after": 1.8},
    {"outcome": "reduced", "largest_before": 0.0, "largest_after": 0.0},
    {"outcome": "fallen back", "largest_before": None, "largest_after": None},
]
TOTALS = {
    "layers": 4,
    "outcomes": {"reduced": 3, "fallen back": 1},
    "reasons": [{"outcome": "fallen back", "reason": "starved", "layers": 1}],
}
OUTCOME = Outcome(
    1.0, 256, {"torch": "2.13", "gptqmodel": "7.6.0"}, warning="1 of 4 layers (25%)", totals=TOTALS,
    layers=LAYERS,
)  # fmt: skip


def front_matter(card: str) -> dict:
    opening, matter, _ = card.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(matter)


def test_front_matter_as_the_hub_reads_it() -> None:
    assert front_matter(model_card(JOB, OUTCOME)) == {
        "base_model": "some/Model-1B",
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["gptq", "magr", "3-bit"],
        "bits": 3,
        "group_size": 64,
    }


def test_a_local_model_is_no_hub_id_and_no_path_gets_out() -> None:
    card = model_card(replace(JOB, model="/home/me/secret/Model-1B"), OUTCOME)
    assert not {"base_model", "base_model_relation"} & set(front_matter(card))
    assert "/home" not in card
    assert "Base model: Model-1B" in card
    assert "of prose.txt, seed 7" in card


@pytest.mark.parametrize(
    "line",
    [
        "# some/Model-1B, 3-bit GPTQ with MagR",
        "- Bits: 3",
        "- Group size: 64",
        "- Symmetric: yes; desc_act: no",
        "- MagR: the default settings",
        "- Calibration: 5 random windows of 256 tokens of prose.txt, seed 7",
        "- Made with: torch 2.13, gptqmodel 7.6.0",
        "4 layers were quantized: 1 fallen back, 3 reduced. Each one is in `magr.json`.",
        "- 1 fallen back: starved",
        "80% on average over layers, from 50% to 100%.",
        "**Warning**: 1 of 4 layers (25%).",
    ],
)
def test_everything_is_said(line: str) -> None:
    assert line in model_card(JOB, OUTCOME)


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_is_one_entry_of_one_table(name: str) -> None:
    engine = ENGINES[name]
    assert engine.toolkit in TOOLKITS
    assert find_spec(engine.module)
    assert engine.loader in LOADERS
    assert set(engine.loaders) <= set(LOADING)


def test_loading_is_shown_for_toolkits_that_can() -> None:
    tried = [{"loader": name} for name in ENGINES["gptqmodel"].loaders]
    card = model_card(JOB, replace(OUTCOME, loaded=tried))
    own, other = "model = GPTQModel.load('out')", "model = AutoModelForCausalLM.from_pretrained('out'"
    assert own in card
    assert other in card
    untried = model_card(JOB, OUTCOME)
    assert own in untried
    assert other not in untried
    versions = {"auto-gptq": "0.7.1"}
    other = model_card(replace(JOB, engine="auto-gptq"), replace(OUTCOME, versions=versions))
    assert "from_quantized('out')" in other
    assert "GPTQModel.load" not in other


def test_autogptq_is_named_for_its_own_checkpoints_alone() -> None:
    # it leaves tied embeddings of others at zero, without a word
    for name, engine in ENGINES.items():
        assert ("auto-gptq" in engine.loaders) == (name == "auto-gptq")
        card = model_card(replace(JOB, engine=name), replace(OUTCOME, versions={engine.distribution: "1"}))
        assert ("auto_gptq" in card) == (name == "auto-gptq")
    assert [road.engine for road in RUNTIMES["auto-gptq"].roads] == ["auto-gptq"]


def test_settings_and_citation_go_with_magr() -> None:
    assert '- MagR: `{"preset": "paper"}`' in model_card(replace(JOB, magr={"preset": "paper"}), OUTCOME)
    assert CITATION in model_card(JOB, OUTCOME)
    plain = model_card(replace(JOB, magr=None, group_size=-1), OUTCOME)
    assert "# some/Model-1B, 3-bit GPTQ\n" in plain
    assert "- MagR: off" in plain
    assert "- Group size: the whole row" in plain
    assert CITATION not in plain
    assert front_matter(plain)["tags"] == ["gptq", "3-bit"]


def test_the_citation_is_the_readmes() -> None:
    assert CITATION in (ROOT / "README.md").read_text(encoding="utf-8")


def test_widths_that_releases_pack_differently_are_told_with_the_release() -> None:
    made = replace(OUTCOME, versions={**OUTCOME.versions, "compressed-tensors": "0.19.0"})
    told = (
        "- Reading it: 3-bit weights are packed as compressed-tensors 0.19.0 packs them; releases up to 0.16"
    )
    assert told in model_card(JOB, made)
    assert "Reading it" not in model_card(replace(JOB, bits=4), made)
    assert "Reading it" not in model_card(JOB, OUTCOME)


def test_too_few_tokens_are_told_of() -> None:
    told = "1 of 4 layers had fewer calibration tokens than columns, such as q_proj with 50 for 64"
    card = model_card(JOB, replace(OUTCOME, totals={**TOTALS, "few_tokens": told}))
    assert f"\n{told}. More calibration text may help.\n" in card


def test_how_windows_begin_is_said() -> None:
    assert "- Windows: as the tokenizer makes them: nothing is put" in model_card(JOB, OUTCOME)
    assert ": `<bos>` at the start of each\n" in model_card(JOB, replace(OUTCOME, beginning="<bos>"))
    stream = model_card(replace(JOB, cut="stream"), OUTCOME)
    assert "- Windows: cut from one stream of tokens, as GPTQ's own code does\n" in stream
