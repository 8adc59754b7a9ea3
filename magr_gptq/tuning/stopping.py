"""Early stopping: what held-out text likes best is kept, be it the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

# evaluations in succession that may be worse than the best one
PATIENCE = 3


@dataclass
class Best:
    """The values with the least loss so far.

    losses: of every evaluation, the start's first. at: the index of the least. values: what was offered then.
    """

    losses: list[float] = field(default_factory=list)
    at: int = 0
    values: list[Tensor] = field(default_factory=list)

    def offer(self, loss: float, values: Sequence[Tensor]) -> None:
        """Keep a copy of the values if their loss is below all before; a loss that is NaN is below none."""
        if not self.losses or loss < self.losses[self.at]:
            self.at, self.values = len(self.losses), [value.detach().clone() for value in values]
        self.losses.append(loss)

    @property
    def exhausted(self) -> bool:
        """Whether the last evaluations were all worse than the best."""
        return len(self.losses) - 1 - self.at >= PATIENCE
