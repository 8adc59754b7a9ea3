"""The command line's entry point: one file a command."""

from __future__ import annotations

import typer

from magr_gptq.app.cli.compare import compare
from magr_gptq.app.cli.demo import demo
from magr_gptq.app.cli.doctor import doctor
from magr_gptq.app.cli.inspect import inspect
from magr_gptq.app.cli.quantize import quantize
from magr_gptq.app.cli.tune import tune

app = typer.Typer(
    name="magr-gptq",
    help="GPTQ with MagR: smaller weights before rounding, ordinary GPTQ checkpoints after it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command()(quantize)
app.command()(compare)
app.command()(demo)
app.command()(doctor)
app.command()(inspect)
app.command()(tune)
