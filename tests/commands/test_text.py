"""Text from every source, its windows, the errors that a person meets, and the shipped excerpts."""

from __future__ import annotations

import json
import random
from importlib.resources import files

import pytest

from eval.studies.demo_model import make_demo_text
from magr_gptq.app import text
from magr_gptq.errors import InputError

SHIPPED = files("magr_gptq.app") / "demo" / "text"


def test_a_text_file_is_read_as_it_is(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("naïve\n\ntext\n", encoding="utf-8")
    assert text.load_text(str(path)) == "naïve\n\ntext\n"


def test_rows_of_jsonl_are_joined_by_blank_lines(tmp_path) -> None:
    # U+2028 is a line separator to str.splitlines, not to JSON
    rows = ["one\u2028still one", "two"]
    lines = [json.dumps({"text": row}, ensure_ascii=False) for row in rows]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([lines[0], "", lines[1], ""]), encoding="utf-8")
    assert text.load_text(str(path)) == "one\u2028still one\n\ntwo"


def write_parquet(path, **columns) -> str:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.table(columns), path)
    return str(path)


def test_rows_of_parquet_are_joined_by_blank_lines(tmp_path) -> None:
    source = write_parquet(tmp_path / "a.parquet", text=["one", "two"], other=[1, 2])
    assert text.load_text(source) == "one\n\ntwo"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\n", "holds no text"),
        ("a.txt", b"caf\xe9", r"not UTF-8 \(byte 3 is 0xe9\)"),
        ("a.jsonl", b'{"text": "a"}\n{', "line 2: not JSON"),
        ("a.jsonl", b'{"body": "a"}', 'line 1: expected an object with a string field "text"'),
        ("a.jsonl", b"[1]", "line 1: expected an object"),
        ("a.parquet", b"not parquet", "is not a parquet file"),
        ("a.md", b"text", "must end in .txt, .jsonl, .parquet"),
    ],
)
def test_bad_files_are_refused_by_name(name: str, content: bytes, message: str, tmp_path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        text.load_text(str(path))
    assert name in str(caught.value)


def test_a_parquet_file_without_text_names_its_columns(tmp_path) -> None:
    source = write_parquet(tmp_path / "a.parquet", body=["one"], number=[1])
    with pytest.raises(InputError, match="its columns are body, number"):
        text.load_text(source)


@pytest.mark.parametrize("source", ["absent.txt", "./absent", "absent.jsonl"])
def test_a_missing_file_is_not_taken_for_a_dataset(source: str) -> None:
    with pytest.raises(InputError, match="there is no file absent"):
        text.load_text(source)


def test_a_folder_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        text.load_text(str(tmp_path))


@pytest.fixture
def hub(monkeypatch):
    """What `datasets.load_dataset` was asked for; it answers with `hub["rows"]`."""
    import datasets

    asked: dict = {"rows": []}

    def load_dataset(path, name=None, **settings):
        asked.update(path=path, name=name, **settings)
        return iter(asked["rows"])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_wikitext2_is_the_raw_release(hub) -> None:
    hub["rows"] = [{"text": "one"}, {"text": ""}, {"text": "two"}]
    assert text.load_text("wikitext2", "test") == "one\n\n\n\ntwo"
    assert (hub["path"], hub["name"], hub["split"]) == ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")


def test_ptb_sentences_are_joined_by_spaces(hub) -> None:
    hub["rows"] = [{"sentence": "one"}, {"sentence": "two"}]
    assert text.load_text("ptb") == "one two"


def test_c4_is_streamed_no_further_than_needed(hub, monkeypatch) -> None:
    monkeypatch.setattr(text, "STREAMED_CHARACTERS", 10)
    hub["rows"] = [{"text": "x" * 6}] * 5
    assert text.load_text("c4") == "xxxxxx\n\nxxxxxx"
    assert (hub["path"], hub["streaming"]) == ("allenai/c4", True)


def test_a_dataset_without_text_names_its_columns(hub) -> None:
    hub["rows"] = [{"body": "one", "label": 1}]
    with pytest.raises(InputError, match="its columns are body, label"):
        text.load_text("someone/reviews")


def test_without_a_network_a_file_is_proposed(monkeypatch) -> None:
    import datasets

    def load_dataset(*_, **__):
        raise ConnectionError("no route to the hub\nlong trace")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"no route to the hub\. .*--calibration reviews\.txt") as caught:
        text.load_text("someone/reviews")
    assert "long trace" not in str(caught.value)


def test_windows_are_drawn_as_gptq_draws_them() -> None:
    # 1,023 possible places: one more would take one more random bit, and give other windows
    tokens = list(range(1073))
    random.seed(3)
    starts = [random.randint(0, 1073 - 50 - 1) for _ in range(20)]
    assert text.random_windows(tokens, 20, 50, seed=3) == [tokens[s : s + 50] for s in starts]
    assert text.random_windows(tokens, 20, 50, seed=4) != text.random_windows(tokens, 20, 50, seed=3)


def test_a_short_text_is_refused_with_the_numbers() -> None:
    assert text.random_windows(range(51), 1, 50, seed=0) == [list(range(50))]
    with pytest.raises(InputError, match="50 tokens, too few for one window of 50"):
        text.random_windows(range(50), 1, 50, seed=0)
    with pytest.raises(InputError, match=r"1,000 tokens, too few for one window of 2,048"):
        text.random_windows(range(1000), 1, 2048, seed=0)


def test_shipped_texts_share_no_paragraph() -> None:
    calibration, evaluation = (
        (SHIPPED / name).read_text(encoding="utf-8") for name in ("calibration.txt", "evaluation.txt")
    )
    assert 550_000 < len(calibration) < 600_000
    assert 230_000 < len(evaluation) < 250_000
    long = {part for part in evaluation.split("\n\n") if len(part) > 80}
    assert len(long) > 500
    assert not long & set(calibration.split("\n\n"))


def test_every_book_that_is_shipped_is_named() -> None:
    sources = (SHIPPED / "SOURCES.md").read_text(encoding="utf-8")
    for author, title, year in make_demo_text.BOOKS.values():
        assert f"- {author}: *{title}* ({year})" in sources


def test_excerpts_stay_on_their_side_of_the_cut() -> None:
    paragraphs = [f"{number:05d} " + "x" * 94 for number in range(1000)]
    book = "\n\n".join(paragraphs)
    first_held_out = int(len(book) * 0.96) // 102 + 1
    held_out = make_demo_text.evaluation_of(book, 2000).split("\n\n")
    # so long that its second half would reach into the held-out part
    training = make_demo_text.calibration_of(book, 60_000).split("\n\n")
    assert held_out == paragraphs[first_held_out : first_held_out + len(held_out)]
    assert len(held_out) == 19
    assert set(training) <= set(paragraphs[: first_held_out - 1])
    assert training[-1] == paragraphs[first_held_out - 2]


def test_a_window_begins_with_what_it_is_given_and_keeps_its_length() -> None:
    # 1,023 possible places again, each of which has 48 tokens of the text
    tokens = list(range(1071))
    random.seed(3)
    starts = [random.randint(0, 1071 - 48 - 1) for _ in range(20)]
    windows = text.random_windows(tokens, 20, 50, seed=3, beginning=[7001, 7002])
    assert windows == [[7001, 7002, *tokens[s : s + 48]] for s in starts]
    with pytest.raises(InputError, match="48 tokens, too few for one window of 50"):
        text.random_windows(range(48), 1, 50, seed=0, beginning=[7001, 7002])


@pytest.mark.parametrize("places", [40, 90, 120, 400, 4000])
def test_an_overlap_is_told_where_much_of_the_text_is_repeated(places: int) -> None:
    starts = text.random_starts(range(places), 5, 20, seed=0, begins=0)
    distinct = len({start + place for start in starts for place in range(20)})
    told = text.overlap_in_words(starts, 20)
    assert (told is None) == (distinct >= 0.75 * 100)
    if told is not None:
        assert f"of their 100 tokens {distinct} are different ones of the text" in told
        assert "Give a longer text, or a smaller --samples or --seqlen" in told


@pytest.mark.parametrize(
    ("cut", "beginnings", "words"),
    [
        ("tokenizer", [], "as the tokenizer makes them: nothing is put before the text"),
        ("tokenizer", ["", "<bos>"], "as the tokenizer makes them: `<bos>` at the start of each"),
        ("stream", [""], "cut from one stream of tokens, as GPTQ's own code does"),
    ],
)
def test_windows_are_told_in_words(cut: str, beginnings: list[str], words: str) -> None:
    assert text.windows_in_words(cut, beginnings) == words
