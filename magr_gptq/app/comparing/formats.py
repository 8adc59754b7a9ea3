"""Numbers as people read them; a missing one is a dash."""

from __future__ import annotations

from collections.abc import Callable

MISSING = "–"


def decimal(value: float | None) -> str:
    """About four digits: 5.47, 77.95, 323.1, 7,700."""
    if value is None:
        return MISSING
    size = abs(value)
    return f"{value:,.{2 if size < 100 else 1 if size < 1000 else 0}f}"


def nats(value: float | None) -> str:
    """Four decimals below 1, as `decimal` from there on: 0.0281, 1.62."""
    return decimal(value) if value is None or abs(value) >= 1 else f"{value:.4f}"


def signed(value: float | None, shown: Callable[[float | None], str] = decimal) -> str:
    """As `shown` has it, with its sign, and a proper minus."""
    if value is None:
        return MISSING
    sign = "+" if value >= 0 else "−"
    return sign + shown(abs(value))


def percent(value: float | None) -> str:
    """A whole number of percent."""
    return MISSING if value is None else f"{value:.0f} %".replace("-", "−")


def mean_and_spread(
    mean: float | None, spread: float | None, shown: Callable[[float | None], str] = decimal
) -> str:
    """The mean, ± the standard deviation where there is one."""
    return shown(mean) if spread is None else f"{shown(mean)} ± {shown(spread)}"


def size(count: float) -> str:
    """Bytes in MB or GB, powers of ten."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
