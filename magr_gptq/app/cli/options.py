"""Options that several commands take, each written once."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from magr_gptq.app.quantizing.engines import ENGINES
from magr_gptq.app.quantizing.runtimes import RUNTIMES


class Cut(str, Enum):
    """See `magr_score.windows`."""

    tokenizer = "tokenizer"
    stream = "stream"


CalibrationText = Annotated[
    str,
    typer.Option(
        "--calibration",
        help="Text: a .txt, .jsonl or .parquet file, wikitext2, c4, ptb, or a dataset's hub id.",
        show_default=False,
    ),
]
CUT_HELP = "Begin each window as the tokenizer begins a text, or cut one stream, as GPTQ's own code does."
WindowCut = Annotated[Cut, typer.Option("--cut", help=CUT_HELP)]
Samples = Annotated[int, typer.Option(min=1, help="Calibration windows.")]
SeqLen = Annotated[int, typer.Option(min=16, help="Tokens a window, up to the model's limit.")]
Seed = Annotated[int, typer.Option(help="For the places of the windows.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python code that the model brings.")
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Load pickled weights, which can run code, too.")
]
PositiveScales = Annotated[
    bool,
    typer.Option(
        "--positive-scales", help="Leave out mirrored grids, for readers that take no negative scale."
    ),
]
ForRuntime = Annotated[
    str | None,
    typer.Option("--for", help=f"What will run the result: {', '.join(RUNTIMES)}.", show_default=False),
]
EngineName = Annotated[str, typer.Option(help=f"The toolkit that quantizes: {', '.join(ENGINES)}.")]
