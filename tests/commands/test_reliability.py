"""Bad input that only the quantizing process sees, faults amid the work, and what is lost then."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import bad_models
import psutil
import pytest
from command_line import PROSE, call, hear_interrupts, quantize
from tiny import _rewrite, save_tiny_model

from magr_gptq.app.cli import quantize as quantize_module
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.output import leftovers, output_folder
from magr_gptq.app.quantizing.worker import Worker
from magr_gptq.errors import InputError
from magr_gptq.toolkits import installed

pytestmark = pytest.mark.long

COMMAND = "from magr_gptq.app.cli.app import app; app()"
ENGINE = installed()[0]
OPTIONS = ("--group-size", 32, "--seqlen", 64, "--samples", 4)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prose.txt").write_text(PROSE)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model("llama", tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Path:
    return bad_models.save_mixture(tmp_path_factory.mktemp("mixtral") / "model")


def job(model: Path, **settings) -> Job:
    text = settings.pop("calibration", "prose.txt")
    return Job(
        str(model), str(Path("out").absolute()), str(Path(text).absolute()),
        engine=ENGINE, group_size=32, samples=4, seqlen=64, **settings,
    )  # fmt: skip


BAD_TEXTS = {
    "empty": (b"", "holds no text"),
    "blank": (b" \n\t\n", "holds no text"),
    "shorter than a window": (b"short", "5 tokens, too few for one window of 64"),
    "not UTF-8": (b"caf\xe9 " * 30, "is not UTF-8 (byte 3 is 0xe9)"),
}


@pytest.mark.parametrize(("content", "message"), BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_bad_input_calibration(content: bytes, message: str, model: Path, worker) -> None:
    Path("bad.txt").write_bytes(content)
    code, output = quantize(model, *OPTIONS, text="bad.txt")
    assert code == 2, output
    assert message in output
    assert {path.name for path in Path().iterdir()} == {"prose.txt", "bad.txt"}


def own_architecture(folder: Path) -> None:
    """A Llama by a name of its own, whose two projections are one."""
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class C(LlamaConfig):\n    model_type = 'own'\n"
        "class M(LlamaForCausalLM):\n    config_class = C\n    def __init__(self, config):\n"
        "        super().__init__(config)\n        mlp = self.model.layers[0].mlp\n"
        "        mlp.up_proj = mlp.gate_proj\n"
    )
    map_ = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    _rewrite(folder / "config.json", model_type="own", auto_map=map_)


def test_bad_input_architecture_that_the_toolkit_lacks(worker, tmp_path) -> None:
    shape = {"hidden_size": 64, "num_hidden_layers": 1}
    mamba = bad_models.save_tiny("mamba", tmp_path / "mamba", **shape)
    with pytest.raises(InputError, match=r"does not (know|list) 'mamba' models"):
        worker.quantize(job(mamba), listen=lambda _: None)


@pytest.mark.skipif(ENGINE != "gptqmodel", reason="AutoGPTQ knows its own list of architectures only")
def test_bad_input_shared_layers_of_trusted_code(worker, model: Path, tmp_path) -> None:
    folder = bad_models.broken(model, tmp_path / "own", own_architecture)
    with pytest.raises(InputError, match=r"gate_proj and .*up_proj share one weight"):
        worker.quantize(job(folder, trust_remote_code=True), listen=lambda _: None)


def test_bad_input_disk_smaller_than_the_checkpoint(worker, model: Path, tmp_path) -> None:
    size = 8 * shutil.disk_usage(tmp_path).free
    folder = bad_models.broken(model, tmp_path / "giant", lambda f: bad_models.sparse_giant(f, size))
    with pytest.raises(InputError, match=r"the checkpoint needs about .* GB, and the disk of"):
        worker.quantize(job(folder), listen=lambda _: None)


@pytest.mark.skipif(ENGINE != "gptqmodel", reason="AutoGPTQ takes windows of any length")
def test_bad_input_windows_that_the_toolkit_would_leave_out(worker, model: Path) -> None:
    with pytest.raises(InputError, match=r"fewer than 11 tokens, and these have 10; give a larger --seqlen"):
        worker.quantize(replace(job(model), seqlen=10), listen=lambda _: None)
    shortest = worker.quantize(replace(job(model), seqlen=11), listen=lambda _: None)
    assert shortest.totals["layers"] == 7


@pytest.mark.parametrize("switch", ["--magr", "--no-magr"])
def test_experts_without_samples_are_counted(switch: str, mixture: Path, worker) -> None:
    code, output = quantize(mixture, *OPTIONS, switch, "--strict")
    assert code == 3, output
    kept = "reduced" if switch == "--magr" else "plain"
    assert f"16 layers: 6 fallen back, 10 {kept}" in output
    assert "Warning" in output
    record = json.loads(Path("out", "magr.json").read_text())
    assert record["totals"]["outcomes"] == {kept: 10, "fallen back": 6}
    (row,) = record["totals"]["reasons"]
    assert row["layers"] == 6
    assert re.match("(no|too few) calibration (token|sample)s? reached", row["reason"])
    assert record["warning"].startswith("6 of 16 layers (38%): 6 fallen back: ")
    fallen = {layer["name"] for layer in record["layers"] if layer["outcome"] == "fallen back"}
    assert {name.split("experts.")[1].split(".")[0] for name in fallen} == {"2", "3"}
    assert record["warning"] in Path("out", "README.md").read_text()
    assert '"fallen back": 6' in worker.log.read_text()


def test_without_strict_the_same_run_succeeds(mixture: Path, worker) -> None:
    code, output = quantize(mixture, *OPTIONS)
    assert code == 0
    assert "Warning" in output
    told = [line for line in output.splitlines() if line.endswith("layers quantized")]
    assert told == ["0 of 1 layers quantized", "1 of 1 layers quantized"]


def test_pickled_weights_are_quantized_where_allowed(worker, model: Path, tmp_path) -> None:
    pickled = bad_models.broken(model, tmp_path / "pickled", bad_models.to_pickle)
    code, output = quantize(pickled, *OPTIONS, "--allow-pickle", "--strict")
    assert code == 0, output
    assert "7 layers: 7 reduced" in output


def command(model: Path, *more: object) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    arguments = [
        "quantize",
        model,
        "--engine",
        ENGINE,
        "--calibration",
        "prose.txt",
        "--out",
        "out",
        "--no-verify",
        *OPTIONS,
    ]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, [*arguments, *more])],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=hear_interrupts,
    )  # fmt: skip


def wait_for_log(process: subprocess.Popen[str], text: str) -> None:
    log = Path("out.quantize.log")
    while not (log.exists() and text in log.read_text()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=60)[1]


# by signal: when it comes, the exit status, and what is left of the run
FAULTS = {
    "SIGTERM at the start": (signal.SIGTERM, "", 143, set()),
    "Ctrl-C at the start": (signal.SIGINT, "", 130, set()),
    "SIGKILL amid the layers": (
        signal.SIGKILL,
        "uantizing",
        -9,
        {"out.quantize.log", ".out.magr-unfinished-"},
    ),
}


@pytest.mark.parametrize(("number", "moment", "status", "left"), FAULTS.values(), ids=FAULTS)
def test_fault(number: int, moment: str, status: int, left: set[str], model: Path) -> None:
    process = command(model, "--samples", 512)
    wait_for_log(process, moment)
    while not (workers := psutil.Process(process.pid).children()):
        time.sleep(0.02)
    process.send_signal(number)
    output = process.communicate()[0]
    assert process.returncode == status, output
    assert "Traceback" not in output
    assert gone(workers)
    if number == signal.SIGKILL:
        # it was written while the work went on
        assert "checking the model" in output
        log = Path("out.quantize.log").read_text()
        assert "the calling process is gone" in log
        assert "BrokenPipeError" not in log, "it went on to the end of the layer"
    remaining = {path.name for path in Path().iterdir()} - {"prose.txt"}
    assert {name[: len(".out.magr-unfinished-")] for name in remaining} == left
    # what is left neither blocks the next run nor is touched by it
    before = leftovers(Path("out").absolute())
    assert len(before) == len(left) // 2
    with output_folder(Path("out").absolute()):
        pass
    assert leftovers(Path("out").absolute()) == before


def test_leftovers_are_named(model: Path, worker) -> None:
    Path(".out.magr-unfinished-0").mkdir()
    code, output = quantize(model, *OPTIONS)
    assert code == 0, output
    assert ".out.magr-unfinished-0 is of a run that was killed, or is still at work" in output
    assert Path(".out.magr-unfinished-0").exists()


class Sabotaged(Worker):
    """Its process suffers as soon as it has read the job."""

    def quantize(self, job: Job, listen):
        pid = self._process.pid

        def suffer(event) -> None:
            listen(event)
            self.harm(pid)

        return super().quantize(job, suffer)


class Killed(Sabotaged):
    @staticmethod
    def harm(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)


class DiskFull(Sabotaged):
    @staticmethod
    def harm(pid: int) -> None:
        # bytes a file; the checkpoint needs more, the log and the configs do not
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Killed, "ended with exit status -9 (-9 often means that memory ran out)"), (DiskFull, "rror")],
    ids=["quantizing process killed", "disk full amid saving"],
)
def test_fault_of_the_quantizing_process(kind: type[Worker], message: str, model: Path, monkeypatch) -> None:
    monkeypatch.setattr(quantize_module, "Worker", kind)
    code, output = quantize(model, *OPTIONS)
    assert code == 1, output
    assert message in output
    assert str(Path("out.quantize.log").absolute()) in output
    assert "Traceback" not in output
    assert ("Traceback" in Path("out.quantize.log").read_text()) == (kind is DiskFull)
    assert {path.name for path in Path().iterdir()} == {"prose.txt", "out.quantize.log"}


def test_help_names_the_safeguards() -> None:
    code, output = call("quantize", "--help")
    assert code == 0
    for option in ("--strict", "--verify", "--for", "--trust-remote-code", "--allow-pickle"):
        assert option in output
