"""Where the scripts that tests run by path lie, and the repository."""

from pathlib import Path

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
