"""The report in a real browser: nothing printed, nothing fetched, nothing cut off, light and dark."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from comparisons import PROFILE, UNQUANTIZED, cell, comparison

pytest.importorskip("matplotlib")

from magr_gptq.app.comparing.report import Facts, write_report

pytestmark = pytest.mark.environments("modern")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LONG = "OutOfMemoryError: tried to allocate 2.00 GiB, " + "/a/very/long/path" * 12

# elements that end beyond the window, and texts wider than the box they are in
CUT_OFF = """() => {
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const box = element.getBoundingClientRect(), text = element.outerHTML.slice(0, 90);
    if (box.width && (box.right > innerWidth + 0.5 || box.left < -0.5)) found.push(text);
    if (element instanceof SVGElement || !element.clientWidth) continue;
    if (element.scrollWidth > element.clientWidth + 1) found.push('too narrow: ' + text);
  }
  return found;
}"""
CONTRAST = (
    """() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"""
)


def facts(**changes) -> Facts:
    published = {
        (UNQUANTIZED, 16, -1): {"prose": 5.47, "arc_easy": 69.3},
        ("gptq", 2, -1): {"prose": 7700.0},
        ("paper", 2, -1): {"prose": 16.73, "arc_easy": 36.7},
    }
    ranks = {"min": 0.1, "q25": 67.71, "mean": 76.83, "q75": 91.02, "max": 99.95}
    known = {
        "model": "a-model-with-quite-a-long-name-7b-hf", "command": "magr-gptq compare model --out out",
        "missing": 0, "settings": {"calibration": "128 random windows"}, "paper": published, "ranks": ranks,
    }  # fmt: skip
    return Facts(**{**known, **changes})


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A full report: every section, a failed cell, the paper's numbers."""
    records = comparison(bits=(4, 2), groups=(-1, 128))
    for key, record in records.items():
        if key.method != PROFILE:
            tasks = {
                name: {"accuracy": 61.2345} for name in ("arc_challenge", "arc_easy", "piqa", "winogrande")
            }
            record["zero_shot"] = {"tasks": tasks, "versions": {"lm-eval": "0.4.13"}}
            # numbers as wide as they come
            record["scores"]["c4"] = {
                "perplexity": 100 * record["scores"]["prose"]["perplexity"],
                "versions": {},
            }
    records[cell("rtn", 4, -1, 1)] = {"error": LONG}
    records[cell("gptq", 4, -1, 1)]["warning"] = "3 of 42 layers were rounded to nearest"
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, records, facts(missing=2))
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    with playwright.sync_playwright() as tool:
        # the sandbox refuses to start as root, which containers often are
        opened = tool.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_is_whole_quiet_and_alone(report: Path, browser, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    page.on("request", lambda request: trouble.append(f"request: {request.url}"))
    page.goto(report.as_uri())
    trouble.remove(f"request: {report.as_uri()}")
    assert [entry for entry in trouble if not entry.startswith("request: data:")] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(CUT_OFF) == []
    background, ink = (sum(map(int, c[4:-1].split(","))) for c in page.evaluate(CONTRAST))
    assert (background > ink + 450) == (scheme == "light")
    assert (ink > background + 450) == (scheme == "dark")
    # every figure is there, drawn in the page's own colours
    assert page.locator("figure svg[role=img]").count() == 2 * 2 + 2 + 3 + 4
    assert page.locator("svg text").first.evaluate("e => e.getBoundingClientRect().height") > 7
    page.close()


def test_print_has_no_dark_page(report: Path, browser) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    assert page.evaluate(CONTRAST) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    assert page.pdf(format="A4")[:4] == b"%PDF"
    page.close()


def test_the_text_of_the_page(report: Path) -> None:
    html = report.read_text(encoding="utf-8")
    for words in (
        "Turn MagR on: it lowers divergence from the unquantized model in", "0.1610 ± 0.0010",
        "0.1610 → 0.0610", "36.10 ± 0.10", "7,700", "16.73", "2 cells not measured",
        "1 cell failed", "holds the same tensors", "3 of 42 layers", "lm-eval 0.4.13", LONG,
    ):  # fmt: skip
        assert words in html
    assert "http" not in html.replace("http://www.w3.org/", "")
    assert "<script" not in html


def test_figures_are_files_too(report: Path) -> None:
    names = {path.name for path in report.with_name("figures").iterdir()}
    assert {
        "perplexity-prose.png",
        "perplexity-prose.svg",
        "perplexity-prose-g128.png",
        "layer-errors-W2.svg",
        "divergence-prose-g128.png",
    } <= names
    assert len(names) == 2 * 13


def test_what_was_given_is_escaped(tmp_path) -> None:
    write_report(
        tmp_path, {cell("gptq", 2): {"error": "<script>alert(1)</script>"}}, facts(model="<b>model</b>")
    )
    html = (tmp_path / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in html
    assert "<b>model" not in html
    assert "No verdict" in html


def test_the_same_tensors_are_claimed_only_where_they_are(tmp_path) -> None:
    records = comparison(bits=(2,), seeds=1)
    records[cell("magr", 2)]["checkpoint"] = {**records[cell("magr", 2)]["checkpoint"], "layout": "other"}
    write_report(tmp_path, records, facts())
    html = (tmp_path / "report.html").read_text()
    assert "do not hold the same tensors" in html
    assert "MagR costs nothing" not in html
