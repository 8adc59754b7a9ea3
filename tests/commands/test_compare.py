"""`magr-gptq compare`: refusals, resuming after a kill, failed cells, several devices; one real run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import bad_models
import psutil
import pytest
from command_line import hear_interrupts
from comparisons import cell
from places import HELPERS, ROOT
from tiny import save_tiny_model
from typer.testing import CliRunner

pytest.importorskip("matplotlib")

from magr_gptq.app.cli.app import app
from magr_gptq.app.cli.compare import _parse_devices
from magr_gptq.app.comparing import run as run_module
from magr_gptq.app.comparing.cells import Store
from magr_gptq.app.comparing.plan import Plan
from magr_gptq.app.comparing.run import Run, run_cells
from magr_gptq.errors import InputError
from magr_gptq.toolkits import installed

pytestmark = pytest.mark.long

ENGINE = installed()[0]
FAKE_LANE = str(HELPERS / "fake_lane.py")
RECIPE = ROOT / "eval" / "recipes" / "llama2-7b.json"
PROSE = "It is a truth universally acknowledged, that a single man must be in want of a wife. " * 30


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("prose.txt").write_text(PROSE)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny_model("llama", tmp_path_factory.mktemp("model"), begins=True))


@pytest.fixture
def fake(monkeypatch) -> None:
    monkeypatch.setattr(run_module, "LANE", (FAKE_LANE,))
    # test_report_html.py looks at the figures, which take most of a short run's time
    monkeypatch.setattr("magr_gptq.app.comparing.report._inline", lambda _: "")
    monkeypatch.setattr(
        "magr_gptq.app.comparing.figures.save_all", lambda _, folder: folder.mkdir(exist_ok=True)
    )


def arguments(model: object, *more: object) -> list[str]:
    fixed = [
        "compare",
        model,
        "--engine",
        ENGINE,
        "--calibration",
        "prose.txt",
        "--evaluate",
        "prose.txt",
        "--out",
        "out",
    ]
    return [str(argument) for argument in (*fixed, *more)]


def call(*given: str) -> tuple[int, str]:
    """Exit code and everything printed."""
    result = CliRunner().invoke(app, list(given))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def perplexities() -> dict[str, float]:
    """Of every cell in the results file."""
    cells = json.loads(Path("out", "results.json").read_text())["cells"]
    return {name: c["scores"]["prose"]["perplexity"] for name, c in cells.items() if "scores" in c}


REFUSED = {
    "method": (["--methods", "awq"], "--methods awq: the methods are rtn"),
    "bits": (["--bits", "5"], "--bits 5"),
    "average": (["--avg-bits", "2.5,few"], "--avg-bits 2.5,few: give numbers with commas between"),
    "number": (["--bits", "two"], "--bits two: give whole numbers"),
    "group": (["--group-size", "0"], "--group-size 0"),
    "device": (["--devices", "0"], "--devices 0: there are 0 GPUs here"),
    "text": (["--evaluate", "absent.txt"], "there is no file absent.txt"),
    "recipe": (["--recipe", "absent.json"], "the recipe absent.json cannot be read"),
    "positive scales without MagR": (
        ["--positive-scales", "--methods", "rtn,gptq"],
        "--positive-scales sets MagR's grids, and rtn, gptq have none",
    ),
    "no cell": (["--recipe", str(RECIPE), "--bits", "8"], "the recipe has no cell with those"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_options_are_named_before_any_work(options, message: str, model: str, fake) -> None:
    code, output = call(*arguments(model, *options))
    assert code == 2
    assert message in output
    assert not Path("out", "cells").exists()


def test_a_model_and_texts_are_needed(model: str) -> None:
    assert (
        "name a MODEL to compare on, or a --recipe" in call("compare", "--out", "out", "--engine", ENGINE)[1]
    )
    assert (
        "both --calibration and --evaluate" in call("compare", model, "--out", "out", "--engine", ENGINE)[1]
    )


def test_a_model_from_the_hub_is_checked_before_any_work(model: str, fake, monkeypatch) -> None:
    downloaded = bad_models.broken(Path(model), Path("hub"), lambda f: (f / "model.safetensors").unlink())
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(downloaded))
    code, output = call(*arguments("some/model"))
    assert code == 2
    assert "has no weights" in output
    assert not Path("out").exists()


def test_pickled_weights_are_refused_with_what_this_command_can_do(model: str, fake) -> None:
    folder = bad_models.broken(Path(model), Path("pickled"), bad_models.to_pickle)
    code, output = call(*arguments(folder))
    assert code == 2
    assert "convert them to safetensors" in output
    assert "`magr-gptq quantize --allow-pickle`" in output


def test_a_system_without_file_locks_gets_a_message_from_compare_alone(model: str, fake, monkeypatch) -> None:
    # as on Windows
    code = "import sys; sys.modules['fcntl'] = None; from magr_gptq.app.cli.app import app; app(['--help'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    monkeypatch.setitem(sys.modules, "fcntl", None)
    code, output = call(*arguments(model))
    assert code == 2
    assert "run it on Linux, macOS or WSL" in output


def test_what_goes_on_is_written_line_by_line_where_no_bar_can_move(model: str, fake) -> None:
    output = call(*arguments(model, "--bits", "2"))[1]
    assert "gptq-w2-g128-prose-seed0: working" in output
    assert "working" not in call(*arguments(model, "--bits", "2", "--force", "--quiet"))[1]


def test_a_folder_with_other_files_is_spared(model: str, fake) -> None:
    Path("out").mkdir()
    Path("out", "precious").write_text("")
    code, output = call(*arguments(model))
    assert code == 2
    assert "holds other files" in output


def test_everything_is_written_once_and_nothing_is_redone(model: str, fake) -> None:
    options = ["--bits", "3,2", "--group-size", "-1", "--seeds", "2"]
    code, output = call(*arguments(model, *options))
    assert code == 0, output
    assert "Turn MagR on: it lowers divergence from the unquantized model in 2 of 2" in output
    assert perplexities()["magr-w2-prose-seed1"] == 26.1
    assert {path.name for path in Path("out").iterdir()} == {
        ".lock", "cells", "texts", "logs", "figures", "compare.log",
        "report.html", "results.json", "results.csv", "results.md",
    }  # fmt: skip
    assert "--bits 3,2 --group-size -1 --calibration prose.txt" in Path("out", "report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in Path("out", "cells").iterdir()}
    assert len(before) == 10
    code, output = call(*arguments(model, *options, "--quiet"))
    assert (code, output) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in Path("out", "cells").iterdir()} == before
    assert call(*arguments(model, *options, "--force"))[0] == 0
    assert all(path.stat().st_mtime_ns > old for path, old in before.items())


@pytest.mark.skipif(ENGINE != "gptqmodel", reason="AutoGPTQ gives all layers one width")
def test_bits_by_layer_stand_beside_the_widths(model: str, fake) -> None:
    options = ("--bits", "3,2", "--avg-bits", "2.5", "--methods", "magr")
    code, output = call(*arguments(model, *options))
    assert code == 0, output
    assert {"magr-w3-g128-prose-seed0", "planned-w2.5-g128-prose-seed0"} < set(perplexities())
    assert "W2.5 g128" in output
    text = Path("out", "report.html").read_text()
    assert "GPTQ + MagR, bits by layer" in text


def test_other_settings_need_force_or_another_folder(model: str, fake) -> None:
    assert call(*arguments(model, "--bits", "2"))[0] == 0
    code, output = call(*arguments(model, "--bits", "2", "--samples", "64"))
    assert code == 2
    assert "was made with samples = 128, now it is 64" in output.replace("\n", " ")
    Path("prose.txt").write_text(PROSE + "The end.")
    assert "evaluate" in call(*arguments(model, "--bits", "2"))[1]


def test_a_failed_cell_is_recorded_and_the_rest_goes_on(model: str, fake) -> None:
    code, output = call(*arguments(model, "--bits", "8,2"))
    assert code == 1
    assert "2 cells failed" in output
    failed = json.loads(Path("out", "cells", "gptq-w8-g128-prose-seed0.json").read_text())
    assert failed["error"] == "out of [memory]"
    assert "magr-w2-g128-prose-seed0" in perplexities()
    assert "out of [memory]" in Path("out", "report.html").read_text()


def test_a_lane_that_dies_fails_one_cell_only(model: str, fake, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_CRASH", "1")
    assert call(*arguments(model, "--bits", "3,2", "--methods", "gptq"))[0] == 1
    error = json.loads(Path("out", "cells", "gptq-w3-g128-prose-seed0.json").read_text())["error"]
    assert "ended with exit status -9" in error
    assert set(perplexities()) == {"unquantized", "gptq-w2-g128-prose-seed0"}
    monkeypatch.delenv("FAKE_CRASH")
    assert call(*arguments(model, "--bits", "3,2", "--methods", "gptq"))[0] == 0
    assert "gptq-w3-g128-prose-seed0" in perplexities()


def test_a_recipe_is_cut_down_and_shows_the_papers_numbers(model: str, fake) -> None:
    # a copy of a dataset in a file of its name stands for it
    Path("wikitext2.txt").write_text(PROSE)
    options = ["--recipe", RECIPE, "--bits", "4", "--methods", "gptq,paper,magr", "--tasks", ""]
    given = arguments(model, *options)
    given[given.index("--evaluate") + 1] = "wikitext2.txt"
    code, output = call(*given)
    assert code == 0, output
    cells = {path.stem for path in Path("out", "cells").iterdir()}
    assert cells == {"unquantized", "profile-w4-prose-seed0"} | {
        f"{method}-w4-prose-seed0" for method in ("gptq", "paper", "magr")
    }
    assert "LLaMA2-7B" in Path("out", "report.html").read_text()
    told = "cut from one stream of tokens, as GPTQ's own code does"
    assert told in output.replace("\n", " ")
    assert f"Windows are {told}." in Path("out", "results.md").read_text()
    asked = json.loads(Path("out", "cells", "gptq-w4-prose-seed0.json").read_text())["settings"]
    assert asked["cut"] == "stream"
    assert call(*given, "--cut", "tokenizer")[0] == 2


def test_every_device_takes_cells(tmp_path, fake) -> None:
    cells = [
        cell(method, bits, seed=seed) for method in ("gptq", "magr") for bits in (4, 2) for seed in range(3)
    ]
    plan = Plan("model", "model", ENGINE, True, 1, 64, {"prose": "prose.txt"}, {}, {"prose": []}, [])
    os.environ["FAKE_SECONDS"] = "0.2"
    store = Store(tmp_path / "cells")
    try:
        run_cells(Run(plan, store, tmp_path / "scratch", tmp_path / "logs"), cells, ["5", "7"], Deaf())
    finally:
        del os.environ["FAKE_SECONDS"]
    found = [record["device"] for record in store.load_all(cells).values()]
    assert len(found) == len(cells)
    assert set(found) == {"5", "7"}


class Deaf:
    """Listens to nothing."""

    def started(self, lane, cell) -> None: ...

    def progress(self, lane, event) -> None: ...

    def finished(self, lane, cell, record) -> None: ...


def test_devices_are_numbers_of_gpus_that_are_there(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert _parse_devices("0,1") == ["0", "1"]
    assert _parse_devices(None) == [None]
    with pytest.raises(InputError, match="--devices 2: there are 2 GPUs"):
        _parse_devices("2")


def start(*given: str, lane: str | None, **environment: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    swap = f"run.LANE = ({lane!r},)" if lane else ""
    imports = "from magr_gptq.app.comparing import run\nfrom magr_gptq.app.cli.app import app"
    code = f"{imports}\n{swap}\napp({list(given)!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        preexec_fn=hear_interrupts,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], reached, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "too slow"
        time.sleep(0.05)


def count_cells() -> int:
    return len(list(Path("out", "cells").glob("*.json"))) if Path("out", "cells").is_dir() else 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_to_the_same_results(model: str, how: signal.Signals, fake) -> None:
    options = arguments(model, "--bits", "3,2")
    process = start(*options, lane=FAKE_LANE, FAKE_SECONDS="0.7")
    wait_for(process, lambda: count_cells() >= 3, 300)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    output = process.communicate()[0]
    assert process.returncode == (130 if how == signal.SIGINT else -9), output
    assert psutil.wait_procs(children, timeout=30)[1] == []
    done = {path: path.read_bytes() for path in Path("out", "cells").glob("*.json")}
    assert 3 <= len(done) < 6
    times = {path: path.stat().st_mtime_ns for path in done}
    assert call(*options)[0] == 0
    assert {path: path.read_bytes() for path in done} == done
    assert {path: path.stat().st_mtime_ns for path in done} == times
    whole = perplexities()
    assert call(*options, "--force")[0] == 0
    assert perplexities() == whole
    assert len(whole) == 5


def test_a_real_run_killed_in_the_middle_of_a_cell(model: str) -> None:
    options = arguments(
        model, "--bits", "2", "--group-size", "32", "--samples", "4", "--seqlen", "64", "--limit", "8"
    )
    process = start(*options, lane=None)
    wait_for(process, lambda: list(Path("out", "checkpoints").glob("gptq-*")), 600)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    # the lane, its worker and its scorers end with the command
    assert psutil.wait_procs(children, timeout=30)[1] == []
    done = {path: path.stat().st_mtime_ns for path in Path("out", "cells").glob("*.json")}
    assert {path.stem for path in done} == {"unquantized", "profile-w2-g32-prose-seed0"}
    code, output = call(*options)
    assert code == 0, output + Path("out", "logs", "lane-0.log").read_text()[-3000:]
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert not Path("out", "checkpoints").exists()
    results = json.loads(Path("out", "results.json").read_text())
    gptq, magr = (results["cells"][f"{name}-w2-g32-prose-seed0"] for name in ("gptq", "magr"))
    # the same tensors, other numbers in them
    assert gptq["checkpoint"]["layout"] == magr["checkpoint"]["layout"]
    assert gptq["checkpoint"]["tensor_bytes"] == magr["checkpoint"]["tensor_bytes"]
    assert gptq["scores"]["prose"]["perplexity"] != magr["scores"]["prose"]["perplexity"]
    assert 0 < magr["scores"]["prose"]["divergence"] != gptq["scores"]["prose"]["divergence"] > 0
    assert "Divergence from the unquantized model" in Path("out", "report.html").read_text()
    beginnings = {cell["scores"]["prose"]["beginning"] for cell in (gptq, results["cells"]["unquantized"])}
    assert {*beginnings, gptq["beginning"]} == {"<|endoftext|>"}
    assert "`<|endoftext|>` at the start of each" in Path("out", "results.md").read_text()
    assert "`&lt;|endoftext|&gt;` at the start of each" in Path("out", "report.html").read_text()
    assert len(gptq["layer_errors"]) == len(magr["layer_errors"]) == 7
    assert all(0 < error < 1 for error in magr["layer_errors"].values())
    assert gptq["inference"]["tokens_per_second"] > 0
    assert gptq["magr"] is None
    assert magr["magr"].startswith("magr: 7 of 7")
    profile = results["cells"]["profile-w2-g32-prose-seed0"]
    assert len(profile["fraction_ranks"]) == 7
    assert all(0 < rank <= 1 for rank in profile["fraction_ranks"].values())
    for layer in profile["magnitudes"].values():
        assert len(layer["before"]) == len(layer["after"])
