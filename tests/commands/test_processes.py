"""The one protocol between processes: what a child answers, what its caller hears, and how either ends."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from magr_gptq.app.processes import Child, EngineError, ask_once
from magr_gptq.errors import InputError

SERVING = """
import os, subprocess, sys, time
from magr_gptq.app.processes import serve
from magr_gptq.errors import InputError

def handle(request, tell):
    print("a toolkit's banner")
    os.write(1, b"another one, past sys.stdout\\n")
    tell("stage", text="at work")
    if request["wish"] == "sleep":
        time.sleep(600)
    if request["wish"] == "descendant":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        time.sleep(600)
    if request["wish"] == "refuse":
        raise InputError("give another one")
    if request["wish"] == "fail":
        raise KeyError("absent")
    if request["wish"] == "die":
        print("no memory left", file=sys.stderr)
        os._exit(3)
    return {"twice": 2 * request["wish"]}

serve(handle)
"""


@pytest.fixture
def child(tmp_path):
    with Child(["-c", SERVING], tmp_path / "log") as started:
        yield started


def ask(child: Child, wish: object) -> tuple[dict, list[dict]]:
    """The result, and all that was heard on the way."""
    heard: list[dict] = []
    return child.ask({"wish": wish}, heard.append), heard


def test_requests_are_answered_one_after_another_and_prints_go_to_the_log(child: Child) -> None:
    assert ask(child, 3) == ({"twice": 6}, [{"text": "at work"}])
    with pytest.raises(InputError, match="give another one"):
        ask(child, "refuse")
    with pytest.raises(EngineError, match=r"KeyError: 'absent' \(all that was printed is in .*log\)"):
        ask(child, "fail")
    assert ask(child, 4)[0] == {"twice": 8}
    log = child.log.read_text()
    assert log.count("a toolkit's banner") == log.count("another one, past sys.stdout") == 4
    assert "Traceback" in log


def test_a_child_that_dies_is_reported_with_its_last_words(child: Child) -> None:
    with pytest.raises(EngineError, match=r"exit status 3 .* its last words: no memory left; .*log"):
        ask(child, "die")
    assert child.ended
    with pytest.raises(EngineError, match="exit status 3"):
        ask(child, 1)


def descendants(child: Child, wanted: int) -> list[psutil.Process]:
    """The child's process and all below it, as soon as there are so many."""
    while True:
        process = psutil.Process(child._process.pid)
        found = [process, *process.children(recursive=True)]
        if len(found) >= wanted:
            return found
        time.sleep(0.05)


@pytest.mark.parametrize(("wish", "count"), [("sleep", 1), ("descendant", 2)])
def test_a_child_whose_caller_is_gone_ends_itself_and_its_group(wish: str, count: int, tmp_path) -> None:
    log = tmp_path / "log"
    child = Child(["-c", SERVING], log, start_new_session=True)
    assert child._process.stdin is not None
    print(json.dumps({"wish": wish}), file=child._process.stdin, flush=True)
    while "banner" not in log.read_text():
        time.sleep(0.05)
    running = descendants(child, count)
    child.close()
    assert not psutil.wait_procs(running, timeout=30)[1]
    assert "the calling process is gone" in log.read_text()


def test_an_idle_child_ends_in_peace(tmp_path) -> None:
    with Child(["-c", SERVING], tmp_path / "log") as child:
        ask(child, 1)
    assert child._process.returncode == 0


ASKING = """
import sys
from pathlib import Path
from magr_gptq.app.processes import ask_once

code = '''
import os
from magr_gptq.app.processes import answer_once
answer_once(lambda request: {"read": os.read(0, 9).decode(), **request})
'''
print(ask_once(["-c", code], {"a": 1}, Path(sys.argv[1])), sys.stdin.read())
"""


def test_a_child_for_one_request_leaves_the_callers_stdin_alone(tmp_path) -> None:
    command = [sys.executable, "-c", ASKING, str(tmp_path / "log")]
    done = subprocess.run(command, input="for the caller", capture_output=True, text=True)
    assert done.stdout.strip() == "{'read': '', 'a': 1} for the caller", done.stderr


def test_one_request_that_fails_names_the_last_line_of_its_own_part_of_the_log(tmp_path) -> None:
    log = Path(tmp_path / "log")
    log.write_text("words of somebody else\n")
    with pytest.raises(EngineError) as caught:
        ask_once(["-c", "raise SystemExit(4)"], {}, log)
    assert "exit status 4" in str(caught.value)
    assert "somebody else" not in str(caught.value)
