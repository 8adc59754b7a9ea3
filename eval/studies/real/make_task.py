r"""A zero-shot task that needs no download: which of four continuations is the text's own?

    python -m eval.studies.real.make_task TEXT OUT
    magr-gptq compare MODEL ... --tasks OUT/continuations.yaml

Every question is a run of words from the text, and every answer the words after such a run: after this one,
and after three others drawn at random. All have the same number of words. A model that has learnt nothing is
right in one of four.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from magr_gptq.app.text import load_text

NAME = "continuations"
WORDS, ANSWER, CHOICES = 32, 6, 4
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def questions(text: str, count: int, seed: int) -> list[dict[str, object]]:
    """`count` questions with their choices and the number of the right one, from all over the text.

    Raises:
        SystemExit: the text is too short for so many that don't overlap.
    """
    words = text.split()
    size = WORDS + ANSWER
    if len(words) < count * size:
        raise SystemExit(f"{count} questions need {count * size:,} words, and the text has {len(words):,}")
    draw = random.Random(seed)
    parts = [words[start : start + size] for start in range(0, len(words) - size + 1, size)]
    chosen = sorted(draw.sample(range(len(parts)), count))
    found: list[dict[str, object]] = []
    for place in chosen:
        others = draw.sample([other for other in range(len(parts)) if other != place], CHOICES - 1)
        choices = [" ".join(parts[number][WORDS:]) for number in (place, *others)]
        order = draw.sample(range(CHOICES), CHOICES)
        found.append(
            {
                "question": " ".join(parts[place][:WORDS]),
                "choices": [choices[number] for number in order],
                "answer": order.index(0),
            }
        )
    return found


def write(text: str, out: Path, count: int, seed: int) -> Path:
    """Save the questions, and the task of lm-eval that asks them; the task's file."""
    out.mkdir(parents=True, exist_ok=True)
    data, task = out.absolute() / f"{NAME}.jsonl", out / f"{NAME}.yaml"
    lines = [json.dumps(question, ensure_ascii=False) for question in questions(text, count, seed)]
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    # a JSON string is a YAML string, whatever the path holds
    task.write_text(TASK.format(name=NAME, data=json.dumps(str(data))), encoding="utf-8")
    return task


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("text", help="text file")
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(write(load_text(args.text), args.out, args.count, args.seed))


if __name__ == "__main__":
    main()
