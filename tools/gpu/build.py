"""GPTQModel's CUDA kernels, compiled next to the other parts, as it can take minutes."""

from __future__ import annotations

from tools.gpu.part import Part, parse

NAMES = ("exllamav2", "marlin_fp16")


def main(part: Part) -> None:
    """A line a kernel."""
    from gptqmodel import extension

    for name in NAMES:
        with part.case(built=name) as found:
            found |= extension.load(name)


if __name__ == "__main__":
    main(parse(__doc__))
