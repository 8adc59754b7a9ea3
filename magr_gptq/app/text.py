"""Calibration and evaluation text: from a local file or a Hugging Face dataset, cut into windows."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from magr_gptq.errors import InputError
from magr_score.windows import STREAM

SUFFIXES = (".txt", ".jsonl", ".parquet")
COLUMN = "text"
# of a streamed dataset: enough for 128 windows of 2,048 tokens to fall apart from one another
STREAMED_CHARACTERS = 16_000_000
# of their tokens the part that windows have to themselves, below which it is told; of a text three times as
# long as they are, windows drawn at random have 0.85
DISTINCT = 0.75


@dataclass(frozen=True)
class _HubText:
    """Where a dataset lies on the hub, and how its rows become one text."""

    path: str
    name: str | None = None
    revision: str | None = None
    column: str = COLUMN
    separator: str = "\n\n"
    streaming: bool = False


# the three texts that GPTQ papers report, joined as GPTQ's own code joins them
KNOWN = {
    "wikitext2": _HubText("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "c4": _HubText("allenai/c4", "en", streaming=True),
    "ptb": _HubText(
        "ptb-text-only/ptb_text_only",
        revision="refs/convert/parquet",
        column="sentence",
        separator=" ",
    ),
}


def load_text(source: str, split: str = "train") -> str:
    """The text of a local .txt, .jsonl or .parquet file, or of a dataset by its hub id.

    `wikitext2`, `c4` and `ptb` are short names of the papers' datasets. Rows are read from the
    field "text" and joined by blank lines. `split` matters for datasets only.
    """
    found = find_source(source)
    text = _read_file(found) if isinstance(found, Path) else _read_hub(found, split)
    if not text.strip():
        raise InputError(f"{found} holds no text; give a file or dataset with some prose in it")
    return text


def find_source(source: str) -> Path | str:
    """The absolute path of a local file that can be read as text, or a dataset's hub id as it is."""
    path = Path(source).expanduser()
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a {', '.join(SUFFIXES)} file in it")
    if not path.exists():
        if path.suffix.lower() in SUFFIXES or source.startswith((".", "/", "~")):
            raise InputError(f"there is no file {path}")
        return source
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: the name must end in {', '.join(SUFFIXES)}, which says how to read it")
    return path.absolute()


def random_windows(
    tokens: Sequence[int], count: int, length: int, seed: int, beginning: Sequence[int] = ()
) -> list[list[int]]:
    """`count` windows of `length` tokens at random places, drawn as GPTQ's own code draws them.

    Args:
        beginning: tokens that every window begins with; they count towards its length.
    """
    starts = random_starts(tokens, count, length, seed, len(beginning))
    return windows_at(starts, tokens, length, beginning)


def windows_at(
    starts: Sequence[int], tokens: Sequence[int], length: int, beginning: Sequence[int]
) -> list[list[int]]:
    """The windows of `length` tokens whose own tokens start there."""
    own = length - len(beginning)
    return [[*beginning, *tokens[start : start + own]] for start in starts]


def random_starts(tokens: Sequence[int], count: int, length: int, seed: int, begins: int) -> list[int]:
    """Where the own tokens of those windows start; begins: how many tokens are put before them."""
    own = length - begins
    if len(tokens) <= own:
        raise InputError(
            f"the calibration text has {len(tokens):,} tokens, too few for one window of {length:,}; "
            "give a longer text or a smaller --seqlen"
        )
    draw = random.Random(seed)
    return [draw.randint(0, len(tokens) - own - 1) for _ in range(count)]


def overlap_in_words(starts: Sequence[int], own: int) -> str | None:
    """What to tell where windows repeat much of the text; None where they do not.

    Args:
        starts: where they start in the text. own: how many of its tokens each of them has.
    """
    ends = sorted(starts)
    distinct = sum(min(own, after - start) for start, after in pairwise([*ends, ends[-1] + own]))
    drawn = own * len(ends)
    if distinct >= DISTINCT * drawn:
        return None
    return (
        f"The calibration windows overlap: of their {drawn:,} tokens {distinct:,} are different ones of the "
        "text. Give a longer text, or a smaller --samples or --seqlen"
    )


def windows_in_words(cut: str, beginnings: Sequence[str]) -> str:
    """How windows begin, for people; `beginnings` are those that were seen."""
    if cut == STREAM:
        return "cut from one stream of tokens, as GPTQ's own code does"
    # backticks, as <bos> would be a tag in Markdown
    added = " or ".join(f"`{beginning}`" for beginning in beginnings if beginning)
    begins = f"{added} at the start of each" if added else "nothing is put before the text"
    return f"as the tokenizer makes them: {begins}"


def _read_file(path: Path) -> str:
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    try:
        return readers[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 (byte {error.start:,} is 0x{error.object[error.start]:02x}); "
            "convert it, for example with `iconv -f LATIN1 -t UTF-8`"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_txt(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _read_jsonl(path: Path) -> str:
    return "\n\n".join(_jsonl_rows(path))


def _jsonl_rows(path: Path) -> Iterator[str]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(row, dict) or not isinstance(row.get(COLUMN), str):
            raise InputError(f'{path}, line {number}: expected an object with a string field "{COLUMN}"')
        yield row[COLUMN]


def _read_parquet(path: Path) -> str:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(f"reading {path} needs pyarrow: pip install pyarrow, or give a .txt file") from error
    try:
        table = ParquetFile(path)
    except ArrowInvalid as error:
        raise InputError(f"{path} is not a parquet file: {error}") from error
    columns = table.schema_arrow.names
    if COLUMN not in columns:
        raise InputError(f'{path} has no column "{COLUMN}"; its columns are {", ".join(columns)}')
    return "\n\n".join(table.read(columns=[COLUMN])[COLUMN].to_pylist())


def _read_hub(source: str, split: str) -> str:
    known = KNOWN.get(source, _HubText(source))
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(
            f"{source!r} is not a local file, and loading it as a dataset needs `pip install datasets`; "
            "a local .txt file needs nothing"
        ) from error
    try:
        rows = load_dataset(
            known.path, known.name, split=split, revision=known.revision, streaming=known.streaming
        )
        return known.separator.join(_hub_rows(source, rows, known))
    except InputError:
        raise
    # the hub client raises dozens of unrelated types, from its own, requests, httpx and pyarrow
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{source!r} is not a local file, and the dataset {known.path} ({split}) could not be loaded: "
            f"{first_line}. Without a network, give a local .txt, .jsonl or .parquet file instead, "
            f"for example --calibration {source.split('/')[-1]}.txt"
        ) from error


def _hub_rows(source: str, rows: Iterable[dict[str, object]], known: _HubText) -> Iterator[str]:
    total = 0
    for row in rows:
        text = row.get(known.column)
        if not isinstance(text, str):
            raise InputError(
                f'{source} has no text column "{known.column}"; its columns are {", ".join(row)}'
            )
        yield text
        total += len(text)
        if known.streaming and total >= STREAMED_CHARACTERS:
            return
