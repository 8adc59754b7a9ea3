r"""Cut the demo's calibration and evaluation text out of public-domain books.

    python -m eval.studies.demo_model.make_demo_text BOOKS_FOLDER magr_gptq/app/demo/text \
        --selection eval/studies/choice/selection.txt

Calibration comes from the first 96 % of every book, which the demo model was trained on;
evaluation comes from the last 4 % only, which it has never seen. So does selection, the text that
settings are chosen on: the very end of every book, which evaluation leaves out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

CALIBRATION_CHARACTERS = 600_000
EVALUATION_CHARACTERS = 250_000
SELECTION_CHARACTERS = 72_000
# where in the training part of a book its calibration excerpts begin
CALIBRATION_STARTS = (0.3, 0.7)

BOOKS = {
    "austen-pride-and-prejudice": ("Jane Austen", "Pride and Prejudice", 1813),
    "dickens-a-tale-of-two-cities": ("Charles Dickens", "A Tale of Two Cities", 1859),
    "dickens-bleak-house": ("Charles Dickens", "Bleak House", 1853),
    "dickens-david-copperfield": ("Charles Dickens", "David Copperfield", 1850),
    "dickens-great-expectations": ("Charles Dickens", "Great Expectations", 1861),
    "dickens-our-mutual-friend": ("Charles Dickens", "Our Mutual Friend", 1865),
    "dickens-the-pickwick-papers": ("Charles Dickens", "The Pickwick Papers", 1837),
    "dostoevsky-crime-and-punishment": (
        "Fyodor Dostoevsky, translated by Constance Garnett", "Crime and Punishment", 1866,
    ),
    "eliot-middlemarch": ("George Eliot", "Middlemarch", 1871),
    "thackeray-vanity-fair": ("William Makepeace Thackeray", "Vanity Fair", 1848),
    "tolstoy-anna-karenina": (
        "Leo Tolstoy, translated by Constance Garnett", "Anna Karenina", 1877,
    ),
    "tolstoy-war-and-peace": (
        "Leo Tolstoy, translated by Louise and Aylmer Maude", "War and Peace", 1869,
    ),
}  # fmt: skip

SOURCES = """# Where this text comes from

`calibration.txt` and `evaluation.txt` are excerpts, cut at paragraph boundaries, of these novels.
All are in the public domain. Every book gives an equal share of each file.

{books}

`evaluation.txt` comes only from the last 4 % of the characters of each book, which the demo model
was not trained on; `calibration.txt` only from the first 96 %. `eval/make_demo_text.py` cuts both.
"""


def excerpt(text: str, start: int, length: int) -> str:
    """Whole paragraphs, at most `length` characters, from the first paragraph that begins after start."""
    begin = text.index("\n\n", start) + 2
    end = text.rindex("\n\n", begin, begin + length)
    return text[begin:end]


def calibration_of(book: str, length: int) -> str:
    """The book's calibration excerpts, from its training part."""
    training = book[: int(len(book) * 0.96)]
    each = length // len(CALIBRATION_STARTS)
    return "\n\n".join(excerpt(training, int(len(training) * at), each) for at in CALIBRATION_STARTS)


def evaluation_of(book: str, length: int) -> str:
    """The book's evaluation excerpt, from its held-out part."""
    return excerpt(book[int(len(book) * 0.96) :], 0, length)


def selection_of(book: str, length: int) -> str:
    """The end of the book."""
    return excerpt(book + "\n\n", len(book) - length, length + 2)


def main() -> None:
    """Write calibration.txt, evaluation.txt, SOURCES.md and the selection text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("books", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--selection", type=Path, required=True)
    args = parser.parse_args()
    books = [(args.books / f"{name}.txt").read_text(encoding="utf-8") for name in BOOKS]
    args.out.mkdir(parents=True, exist_ok=True)
    for path, cut, characters in (
        (args.out / "calibration.txt", calibration_of, CALIBRATION_CHARACTERS),
        (args.out / "evaluation.txt", evaluation_of, EVALUATION_CHARACTERS),
        (args.selection, selection_of, SELECTION_CHARACTERS),
    ):
        text = "\n\n".join(cut(book, characters // len(books)) for book in books)
        path.write_text(text + "\n", encoding="utf-8")
        print(f"{path}: {len(text):,} characters")
    lines = "\n".join(f"- {author}: *{title}* ({year})" for author, title, year in BOOKS.values())
    (args.out / "SOURCES.md").write_text(SOURCES.format(books=lines), encoding="utf-8")


if __name__ == "__main__":
    main()
