"""Zero-shot accuracy of a model folder through lm-eval, without magr_gptq.

    python -I -m magr_score.zero_shot '{"tasks": ["arc_easy"], "checkpoint": FOLDER, "engine": ENGINE}'

Without a checkpoint it only loads the tasks and their datasets, which is how a comparison finds out
before any work that something is missing. A task is a name, or the path of a task's .yaml file. One
JSON line goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from magr_score.perplexity import ENGINES

# the paper's Table 4 has plain accuracy
METRIC = "acc,none"
BATCH_SIZE = 8


def load_tasks(names: list[str]) -> Any:
    """lm-eval's tasks, with their datasets; SystemExit says what is missing."""
    import yaml
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    known = set(manager.all_tasks)
    loaded: dict[str, Any] = {}
    for name in names:
        is_file = name.endswith((".yaml", ".yml"))
        if not is_file and name not in known:
            raise SystemExit(f"lm-eval {version('lm-eval')} has no task {name!r}")
        try:
            loaded |= manager.load([yaml.safe_load(Path(name).read_text()) if is_file else name])["tasks"]
        # datasets and the hub client raise dozens of unrelated types
        except Exception as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise SystemExit(
                f"the dataset of task {name!r} is not in the local cache and cannot be fetched: {first_line} "
                f"Run `lm-eval run --model dummy --tasks {name} --limit 1` once where there is a network"
            ) from error
    return loaded


def accuracies(request: dict[str, Any]) -> dict[str, Any]:
    """Accuracy in percent and its standard error by task."""
    import torch
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    tasks = load_tasks(request["tasks"])
    if "checkpoint" not in request:
        return {}
    folder = request["checkpoint"]
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    model = ENGINES[request["engine"]][0](folder, device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    runner = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH_SIZE)
    found = evaluate(lm=runner, task_dict={"tasks": tasks}, bootstrap_iters=0, log_samples=False)
    return {name: _accuracy(name, values) for name, values in found["results"].items()}


def _accuracy(name: str, values: dict[str, Any]) -> dict[str, float]:
    if METRIC not in values:
        raise SystemExit(f"task {name!r} reports no accuracy, only {', '.join(sorted(values))}")
    return {"accuracy": 100 * values[METRIC], "examples": values.get("sample_len")}


def main() -> None:
    """Answer with one JSON line on the real stdout."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    found = accuracies(json.loads(sys.argv[1]))
    assert "magr_gptq" not in sys.modules, "magr_gptq was imported: this proves nothing"
    print(json.dumps({"tasks": found, "versions": {"lm-eval": version("lm-eval")}}), file=answer, flush=True)


if __name__ == "__main__":
    main()
