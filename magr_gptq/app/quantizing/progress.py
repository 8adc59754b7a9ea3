"""How far a toolkit is that has no callback, but logs every layer or block that it starts."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable


class StartsHeard(logging.Filter):
    """Tells how many layers are done, from a toolkit's log; a context manager.

    logger: the toolkit's. pattern: of the message, with the number of the layer that starts, from 1.
    """

    def __init__(self, logger: str, pattern: str, progress: Callable[[int], None]) -> None:
        super().__init__()
        self._logger, self._pattern, self._progress = logging.getLogger(logger), pattern, progress

    def filter(self, record: logging.LogRecord) -> bool:
        started = re.match(self._pattern, record.getMessage())
        if started:
            self._progress(int(started[1]) - 1)
        return True

    def __enter__(self) -> None:
        # a logger of a higher level asks no filter
        self._level = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addFilter(self)

    def __exit__(self, *_: object) -> None:
        self._logger.removeFilter(self)
        self._logger.setLevel(self._level)
