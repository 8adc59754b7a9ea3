"""The source patches: they apply to the released files, and give the bits that `enable` gives."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native_runs import ENVIRONMENT, MAGR, ROADS
from places import HELPERS, ROOT
from safetensors.torch import load_file
from tiny import save_tiny_model

pytestmark = pytest.mark.long

PATCHES = ROOT / "patches"
LONGEST = 60
# an untested patch that looks tested is worse than a failure, so that skipping has to be asked for
MAY_BE_OFFLINE = "MAGR_OFFLINE"

RUN = {
    "modern": ("gptqmodel-7.6.0", "optimum-2.3.0", "llmcompressor-0.14.0"),
    "autogptq": ("auto-gptq-0.7.1",),
}[ENVIRONMENT]
# needs a torch newer than the one the tests run on
ONLY_APPLIED = {"modern": ("gptqmodel-7.7.0",), "autogptq": ()}[ENVIRONMENT]
ROAD = pytest.mark.parametrize("road", ROADS[ENVIRONMENT])


def unpack(release: str, folder: Path) -> Path:
    """The released files, from pip's cache or its index."""
    name, version = release.rsplit("-", 1)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--dest", str(folder), f"{name}=={version}"], capture_output=True, text=True
    )
    if done.returncode:
        why = f"pip can't download {release}: {done.stderr.strip().splitlines()[-1]}"
        if os.environ.get(MAY_BE_OFFLINE):
            pytest.skip(why)
        pytest.fail(f"{why}. Without it no patch is tested; {MAY_BE_OFFLINE}=1 lets that be skipped")
    (archive,) = folder.iterdir()
    shutil.unpack_archive(archive, folder / release, format="zip" if archive.suffix == ".whl" else "gztar")
    inside = folder / release / f"{name}-{version}"
    return inside if inside.is_dir() else folder / release


def apply(release: str, folder: Path) -> str:
    """Apply a patch to the files in folder, exactly; what `patch` says."""
    command = ["patch", "-p1", "--fuzz=0", "--input", str(PATCHES / f"{release}.patch")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def patched(tmp_path_factory) -> dict[str, Path]:
    """The releases that can run here, patched."""
    folders = {release: unpack(release, tmp_path_factory.mktemp("release")) for release in RUN}
    for release, folder in folders.items():
        apply(release, folder)
    return folders


@pytest.fixture(scope="module")
def runs(patched, tmp_path_factory) -> Path:
    """ROOT/enabled and ROOT/native, each by a process of its own."""
    root = tmp_path_factory.mktemp("runs")
    model = str(save_tiny_model("llama", root / "model"))
    for mode, first in (("enabled", []), ("native", list(patched.values()))):
        (root / mode).mkdir()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*first, HELPERS, ROOT]))}
        command = [sys.executable, str(HELPERS / "native_runs.py"), mode, model, str(root / mode)]
        done = subprocess.run(
            [*command, str(root / "enabled")], capture_output=True, text=True, cwd=root, env=environment
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root


@pytest.fixture(scope="module")
def answers(runs) -> dict:
    return json.loads((runs / "native" / "answers.json").read_text())


def settings_in(folder: Path) -> dict:
    """Every file of settings, and the report."""
    read = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return {**read, **{path.name: path.read_text() for path in folder.glob("*.yaml")}}


def assert_same(one: Path, other: Path) -> None:
    assert settings_in(one) == settings_in(other)
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names == sorted(path.name for path in other.glob("*.safetensors"))
    assert names
    for name in names:
        left, right = load_file(one / name), load_file(other / name)
        assert left.keys() == right.keys()
        assert not [key for key in left if left[key].numpy().tobytes() != right[key].numpy().tobytes()]


@pytest.mark.parametrize("release", [*RUN, *ONLY_APPLIED])
def test_applies_without_fuzz_and_compiles(release: str, patched, tmp_path) -> None:
    folder = patched.get(release)
    if folder is None:
        folder = unpack(release, tmp_path)
        apply(release, folder)
    text = (PATCHES / f"{release}.patch").read_text()
    files = re.findall(r"^\+\+\+ b/(\S+)", text, re.MULTILINE)
    assert files
    for name in files:
        source = (folder / name).read_text()
        assert "magr" in source.lower()
        compile(source, name, "exec")


@pytest.mark.parametrize("path", sorted(PATCHES.glob("*.patch")), ids=lambda path: path.stem)
def test_is_short(path: Path) -> None:
    changed = [line for line in path.read_text().splitlines() if re.match(r"[+-](?!\+\+ |-- )", line)]
    assert 0 < len(changed) < LONGEST


def test_the_patched_files_were_run(answers, patched) -> None:
    folders = [str(folder) for folder in patched.values()]
    assert len(answers["files"]) == len(folders)
    for name, path in answers["files"].items():
        assert any(path.startswith(folder) for folder in folders), name


@ROAD
def test_on_gives_the_bits_of_enable(road: str, runs) -> None:
    assert_same(runs / "native" / "on" / road, runs / "enabled" / "on" / road)


@ROAD
def test_on_is_recorded_and_changes_weights(road: str, runs) -> None:
    folder = runs / "native" / "on" / road
    found = json.dumps(settings_in(folder))
    assert "magr" in found
    assert "0.9" in found
    plain = load_file(runs / "native" / "off" / road / next(folder.glob("*.safetensors")).name)
    (weights,) = (load_file(path) for path in folder.glob("*.safetensors"))
    assert plain.keys() == weights.keys()
    assert any(not plain[key].equal(weights[key]) for key in plain)


@ROAD
def test_off_gives_the_bits_of_an_untouched_toolkit(road: str, runs) -> None:
    assert_same(runs / "native" / "off" / road, runs / "enabled" / "off" / road)
    assert "magr" not in json.dumps(settings_in(runs / "native" / "off" / road))


def test_without_the_package_the_error_names_it(answers) -> None:
    said = answers["without the package"]
    assert set(said) == set(ROADS[ENVIRONMENT])
    for road, text in said.items():
        assert text.startswith("ImportError: "), (road, text)
        assert "pip install magr-gptq" in text


def test_without_the_package_checkpoints_load_and_keep_the_setting(answers) -> None:
    assert answers["loaded"]
    for setting in answers["loaded"].values():
        assert setting == {"preset": "default", **MAGR}


@pytest.mark.skipif(ENVIRONMENT != "modern", reason="AutoGPTQ can't resume a run")
def test_a_resumed_run_reports_the_layers_before_the_stop(answers) -> None:
    names = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    assert answers["resumed"] == sorted(f"model.layers.0.{name}" for name in names)


@pytest.mark.parametrize("offline", [None, "1"])
def test_without_an_index_they_fail_unless_skipping_was_asked_for(offline, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(MAY_BE_OFFLINE, raising=False)
    if offline:
        monkeypatch.setenv(MAY_BE_OFFLINE, offline)
    failed = subprocess.CompletedProcess([], 1, "", "no route to host")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises((pytest.skip.Exception, pytest.fail.Exception)) as caught:
        unpack(RUN[0], tmp_path)
    assert isinstance(caught.value, pytest.skip.Exception if offline else pytest.fail.Exception)
    assert "no route to host" in str(caught.value)


def test_an_unknown_setting_is_refused_by_name(answers) -> None:
    assert set(answers["unknown setting"]) == set(ROADS[ENVIRONMENT])
    for text in answers["unknown setting"].values():
        assert "unknown setting 'betta'" in text


@pytest.mark.skipif(ENVIRONMENT != "modern", reason="AutoGPTQ has no other method")
def test_where_it_cannot_apply_it_is_refused(answers) -> None:
    said = answers["other methods"]
    assert all("`magr` requires `method=gptq`" in said[method] for method in ("awq", "qqq"))
    assert "`magr` requires a GPT-QModel that supports it" in said["another gptqmodel"]


def test_enable_refuses_a_patched_toolkit(answers) -> None:
    assert answers["enable"].startswith("SeamError: ")
    assert "a copy that supports magr by itself" in answers["enable"]
