"""Measure models in a process that never imports magr_gptq, and fails where it got imported.

    python -I -m magr_score perplexity MODEL... TEXT.txt --engine gptqmodel
    python -I -m magr_score divergence ORIGINAL MODEL... TEXT.txt --engine gptqmodel
    python -I -m magr_score perplexity|divergence|examine|zero-shot|weights|verify REQUEST_JSON

For people it prints one JSON line a model. A request, which starts with {, is answered by one event, as
`magr_score.process` has it. Everything that a toolkit prints goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

# GPTQModel compiles its kernel, for longer than most scores take; torch reads this as it is imported
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

from magr_score import divergence, examine, perplexity, verify, weights, zero_shot
from magr_score.errors import ScoreError
from magr_score.loaders import LOADERS
from magr_score.process import keep_stdout, respond, teller
from magr_score.windows import CUTS, TOKENIZER

Request = dict[str, Any]
SCORES: dict[str, Callable[[Request], Iterator[dict[str, Any]]]] = {
    "perplexity": perplexity.scores,
    "divergence": divergence.scores,
}
OTHERS: dict[str, Callable[[Request], dict[str, Any]]] = {
    "examine": examine.examine,
    "zero-shot": zero_shot.accuracies,
    "weights": weights.save,
    "verify": verify.verify,
}


def main() -> None:
    """Answer one request, or score what a person named."""
    is_request = len(sys.argv) == 3 and sys.argv[1] in (*SCORES, *OTHERS) and sys.argv[2].startswith("{")
    if is_request:
        tell = teller(keep_stdout())
        respond(tell, partial(answer, sys.argv[1], json.loads(sys.argv[2])), ScoreError)
        return
    args = parse_arguments()
    answers = keep_stdout()
    try:
        for found in SCORES[args.quantity](vars(args)):
            require_vanilla()
            print(json.dumps(found), file=answers, flush=True)
    except ScoreError as error:
        raise SystemExit(str(error)) from error


def answer(quantity: str, request: Request) -> dict[str, Any]:
    """What was asked for; `scores` is a list of them, one a model."""
    if quantity in SCORES:
        result: dict[str, Any] = {"scores": list(SCORES[quantity](request))}
    else:
        result = OTHERS[quantity](request)
    require_vanilla()
    return result


def require_vanilla() -> None:
    """RuntimeError where a measurement would prove nothing about what users have."""
    if "magr_gptq" in sys.modules:
        raise RuntimeError("magr_gptq was imported: this score proves nothing")


def parse_arguments() -> argparse.Namespace:
    """The command line; wrong input ends it with one line that says what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -I -m magr_score", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    quantities = parser.add_subparsers(dest="quantity", required=True, metavar="perplexity|divergence")
    for name in SCORES:
        chosen = quantities.add_parser(name)
        if name == "divergence":
            chosen.add_argument("original", help="folder of the unquantized model")
        chosen.add_argument(
            "models", nargs="+", metavar="model", help="folder with a model and its tokenizer"
        )
        chosen.add_argument("text", help="UTF-8 text file")
        chosen.add_argument(
            "--engine", choices=LOADERS, required=True, help="the toolkit that loads the models"
        )
        chosen.add_argument("--seqlen", type=int, default=2048, help="at most the model's own limit")
        chosen.add_argument(
            "--cut",
            choices=CUTS,
            default=TOKENIZER,
            help="begin each window as the tokenizer begins a text, or cut one stream, as GPTQ's code does",
        )
        chosen.add_argument(
            "--limit", type=int, help="score only so many windows, spread evenly over the text"
        )
    args = parser.parse_args()
    for folder in (*args.models, *([args.original] if args.quantity == "divergence" else ())):
        if not Path(folder, "config.json").is_file():
            parser.error(f"{folder} is not a model folder: it has no config.json")
    if not Path(args.text).is_file():
        parser.error(f"there is no file {args.text}")
    if args.seqlen < 2 or (args.limit is not None and args.limit < 1):
        parser.error("--seqlen must be at least 2 and --limit at least 1")
    return args


if __name__ == "__main__":
    main()
