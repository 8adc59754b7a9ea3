"""What reaches the screen, and what doesn't."""

from __future__ import annotations

import os
import sys
import warnings

from magr_gptq.app.console import output_hidden


def test_banners_and_warnings_are_hidden_even_past_pythons_streams(capfd) -> None:
    with output_hidden():
        os.write(1, b"a banner of compiled code")
        os.write(2, b"a warning of compiled code")
        warnings.warn("a warning of a toolkit", stacklevel=1)
    os.write(1, b"the result")
    print("a word", file=sys.stderr)
    assert capfd.readouterr() == ("the result", "a word\n")
