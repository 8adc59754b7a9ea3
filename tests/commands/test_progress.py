"""Progress of toolkits that only log what they start."""

from __future__ import annotations

import logging

from magr_gptq.app.quantizing.progress import StartsHeard


def test_starts_are_heard_whatever_the_level_and_the_logger_is_left_as_it_was() -> None:
    toolkit, heard = logging.getLogger("a.toolkit"), []
    toolkit.setLevel(logging.ERROR)
    with StartsHeard("a.toolkit", r"Start block .* (\d+)/", heard.append):
        for number in (1, 2):
            toolkit.info(f"Start block model.layers {number}/2")
        toolkit.info("another line of 7/8")
    toolkit.info("Start block model.layers 3/2")
    assert heard == [0, 1]
    assert toolkit.level == logging.ERROR
    assert not toolkit.filters
