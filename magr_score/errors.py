"""The error that the person who asked for a measurement can mend."""

from __future__ import annotations


class ScoreError(ValueError):
    """A model, text or task that cannot be measured; the message says which, and what would do."""
