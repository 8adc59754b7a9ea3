"""Zero-shot accuracy of a model folder through lm-eval."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from magr_score.errors import ScoreError
from magr_score.loaders import LOADERS, device, dtype_on

# the paper's Table 4 has plain accuracy
METRIC = "acc,none"
BATCH_SIZE = 8


def load_tasks(names: list[str]) -> Any:
    """lm-eval's tasks, with their datasets; ScoreError says what is missing."""
    import yaml
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    known = set(manager.all_tasks)
    loaded: dict[str, Any] = {}
    for name in names:
        is_file = name.endswith((".yaml", ".yml"))
        if not is_file and name not in known:
            raise ScoreError(f"lm-eval {version('lm-eval')} has no task {name!r}")
        try:
            loaded |= manager.load([yaml.safe_load(Path(name).read_text()) if is_file else name])["tasks"]
        # datasets and the hub client raise dozens of unrelated types
        except Exception as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ScoreError(
                f"the dataset of task {name!r} is not in the local cache and cannot be fetched: {first_line} "
                f"Run `lm-eval run --model dummy --tasks {name} --limit 1` once where there is a network"
            ) from error
    return loaded


def accuracies(request: dict[str, Any]) -> dict[str, Any]:
    """Accuracy in percent by task, and lm-eval's release.

    Without a checkpoint it only loads the tasks and their datasets, which is how a comparison finds out
    before any work that something is missing.

    Args:
        request: tasks, names or paths of .yaml files; checkpoint, a folder, and engine, of `LOADERS`.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    versions = {"lm-eval": version("lm-eval")}
    tasks = load_tasks(request["tasks"])
    if "checkpoint" not in request:
        return {"tasks": {}, "versions": versions}
    folder = request["checkpoint"]
    runner = HFLM(
        pretrained=LOADERS[request["engine"]].load(folder, device(), dtype_on(device(), folder)),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        batch_size=BATCH_SIZE,
        # log-likelihoods are summed in this dtype; 16 bits have steps of 4 near 800
        softmax_dtype="float32",
    )
    found = evaluate(lm=runner, task_dict={"tasks": tasks}, bootstrap_iters=0, log_samples=False)
    return {
        "tasks": {name: _accuracy(name, values) for name, values in found["results"].items()},
        "versions": versions,
    }


def _accuracy(name: str, values: dict[str, Any]) -> dict[str, float]:
    if METRIC not in values:
        raise ScoreError(f"task {name!r} reports no accuracy, only {', '.join(sorted(values))}")
    return {"accuracy": 100 * values[METRIC], "examples": values.get("sample_len")}
