"""`magr-gptq doctor`: what is installed, and what `enable()` would change in it."""

from __future__ import annotations

import torch
import typer
from rich.markup import escape

from magr_gptq.app.console import console, output_hidden
from magr_gptq.app.quantizing.runtimes import RUNTIMES
from magr_gptq.toolkits import TOOLKITS, SeamError, enabled, installed


def doctor() -> None:
    """Show the installed toolkits, what enable() would change in them, torch and the GPU."""
    console.print(f"torch {torch.__version__}, {_gpu()}")
    usable = [show_toolkit(name) for name in TOOLKITS]
    show_runtimes()
    if not any(usable):
        console.print(
            "\n[bold red]No toolkit is usable.[/] pip install 'magr-gptq\\[gptqmodel]', "
            "or 'magr-gptq\\[autogptq]' in an environment of its own"
        )
        raise typer.Exit(1)


def show_toolkit(name: str) -> bool:
    """Print all about one toolkit; whether `enable` works on it."""
    toolkit = TOOLKITS[name]
    verified = ", ".join(toolkit.verified)
    if name not in installed():
        console.print(f"\n[bold]{name}[/] is not installed (verified: {verified})")
        return False
    known = toolkit.version in toolkit.verified
    mark = "verified" if known else f"not verified; the tests ran with {verified}"
    console.print(f"\n[bold]{name} {toolkit.version}[/] ({mark})")
    try:
        with output_hidden(), enabled(name) as symbols:
            pass
    except SeamError as error:
        console.print(f"  [red]enable() refuses:[/] {escape(str(error))}")
        return False
    # a toolkit that clashes with its neighbours fails with whatever its imports raise
    except Exception as error:
        console.print(f"  [red]it does not import:[/] {type(error).__name__}: {escape(str(error))}")
        return False
    console.print("  enable() changes, and disable() puts back:")
    for symbol in symbols:
        console.print(f"    {escape(symbol)}")
    return True


def show_runtimes() -> None:
    """Print what each runtime loads, for `quantize --for`."""
    console.print("\n[bold]quantize --for RUNTIME[/]")
    for name, runtime in RUNTIMES.items():
        loads = "; ".join(map(str, runtime.roads)) or f"nothing: {runtime.remedy}"
        sign = ", positive scales only" if runtime.positive else ""
        console.print(f"  {name}: {escape(loads)}{sign} ({runtime.seen})", soft_wrap=True)


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "no GPU: everything runs on the CPU"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
