"""The site's figures are those of the studies: nothing is copied into docs/ that could grow stale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

STUDIES = Path(__file__).parents[1] / "eval" / "studies"


def on_files(files: Files, *, config: Any) -> Files:
    """Every figure eval/studies/STUDY/results/NAME.png as figures/STUDY-NAME.png."""
    for path in STUDIES.glob("*/results/*.png"):
        name = f"figures/{path.parts[-3]}-{path.name}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files
