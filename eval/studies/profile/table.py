"""Where a run's processor time goes, from the stacks that py-spy has sampled: a Markdown table.

    py-spy record --subprocesses --rate 20 --format raw --output STACKS.txt -- magr-gptq quantize ...
    python -m eval.studies.profile.table STACKS.txt

A sample belongs to the innermost function of one of `OWNERS`; what that calls in torch is its own. Forward
passes are the toolkit's, or those of the unquantized chain.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

# by a part of the path of a frame's file
OURS = ("magr_gptq/", "magr_score/")
OWNERS = (
    *OURS,
    "gptqmodel/",
    "transformers/",
    "safetensors/",
    "tokenizers/",
    "datasets/",
    "<frozen importlib",
)
# where a model's own layers compute
FORWARD = ("transformers/models/", "transformers/integrations/", "gptqmodel/nn_modules/")
CHAIN = "magr_gptq/toolkits/original.py"
FRAME = re.compile(r"(?P<function>.+) \((?P<file>.+?)(:\d+)?\)$")
LEAST = 0.005


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stacks", type=Path)
    args = parser.parse_args()
    found: Counter[str] = Counter()
    for frames, count in samples(args.stacks.read_text(encoding="utf-8")):
        found[owner(frames)] += count
    total = sum(found.values())
    ours = sum(count for name, count in found.items() if name.startswith("`"))
    print(f"{total:,} samples, {ours / total:.1%} of them ours\n")
    print("| share | what |", "|---|---|", sep="\n")
    for name, count in found.most_common():
        if count >= LEAST * total:
            print(f"| {count / total:.1%} | {name} |")


def samples(stacks: str) -> Iterator[tuple[list[str], int]]:
    """Frames from the outermost to the innermost, and how often they were seen."""
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        yield stack.split(";"), int(count)


def owner(frames: Sequence[str]) -> str:
    """Who the innermost frame works for; ours in backticks, by file and function."""
    for frame in reversed(frames):
        match = FRAME.match(frame)
        file = match["file"] if match else ""
        name = next((name for name in OWNERS if name in file), None)
        if match is None or name is None:
            continue
        if name in OURS:
            return f"`{file[file.index(name) :]}`, `{match['function'].rpartition('.')[2]}`"
        if any(place in file for place in FORWARD):
            return "`the unquantized chain's forward passes`" if within(CHAIN, frames) else "forward passes"
        return {"<frozen importlib": "imports"}.get(name, name.rstrip("/"))
    return "everything else"


def within(file: str, frames: Sequence[str]) -> bool:
    """Whether any frame is of this file."""
    return any(file in frame for frame in frames)


if __name__ == "__main__":
    main()
