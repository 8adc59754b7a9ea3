"""The error that a person caused and can mend."""

from __future__ import annotations


class InputError(ValueError):
    """Something that was given cannot be used; the message says what, and what to give instead."""
