"""The tables of the study of several models."""

import json

import pytest

pytest.importorskip("scipy")

from eval.studies.other_models import run as models

LINES = [
    {"name": f"{grid} | {method} | {seed}", "perplexity": perplexity, "divergence": divergence}
    for grid, method, seed, perplexity, divergence in [
        ("W3", "plain GPTQ", 0, 10.0, 0.3),
        ("W3", "plain GPTQ", 1, 12.0, 0.2),
        ("W3", "ours", 0, 13.0, 0.1),
        ("W2", "plain GPTQ", 0, 20.0, 0.5),
        ("W2", "ours", 0, 30.0, 0.6),
    ]
]


def test_table_has_mean_and_spread_of_the_seeds():
    rows = models.table([{"name": "unquantized"}, *LINES], "perplexity", 2).splitlines()
    assert rows[0] == "| | W3 | W2 |"
    assert rows[2:] == ["| plain GPTQ | 11.00 ± 1.41 | 20.00 |", "| ours | 13.00 | 30.00 |"]


def test_ranks_are_compared_within_a_grid():
    found = models.correlations([{"name": "unquantized"}, *LINES], "divergence", "perplexity")
    assert found == "W3 -1.00, W2 1.00"


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        ((), "perplexity"),
        (("--also",), "perplexity_also"),
        (("--divergence",), "divergence"),
        (("--also", "--divergence"), "divergence_also"),
    ],
)
def test_command_prints_the_measure_asked_for(flags, key, tmp_path, monkeypatch, capsys):
    keys = ("perplexity", "perplexity_also", "divergence", "divergence_also")
    names = ["unquantized", "W3 | ours | 0", "W3 | ours | 1"]
    records = tmp_path / "records.jsonl"
    lines = [
        {"model": "m", "name": name, **{key: 10.0 * column + row for column, key in enumerate(keys)}}
        for row, name in enumerate(names)
    ]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr("sys.argv", ["models.py", str(records), *flags])
    models.main()
    mean = 10 * keys.index(key) + 1.5
    assert f"| ours | {mean:.{4 if 'divergence' in key else 2}f} ±" in capsys.readouterr().out
