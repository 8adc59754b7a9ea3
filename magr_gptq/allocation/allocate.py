"""One option for each of many items, the cheapest of a total size: the multiple-choice knapsack, exactly.

The search keeps, item after item, every total that no other total beats in both size and cost. A total is
dropped where even the relaxed problem of the items to come, which may mix two options, ends above a solution
that is known. (H. Kellerer, U. Pferschy and D. Pisinger, "Knapsack Problems", chapter 11, Springer 2004.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

# size and cost
Point = tuple[int, float]

# of all costs' sum: that of some in another order differs by less
ROUNDING = 1e-12


@dataclass(frozen=True)
class Item:
    """What may be chosen, one option of several.

    sizes: [options] int64, in any unit. costs: [options] float64.
    """

    sizes: Tensor
    costs: Tensor

    @classmethod
    def of(cls, sizes: Sequence[int], costs: Sequence[float]) -> Item:
        """From plain numbers."""
        return cls(torch.tensor(sizes, dtype=torch.int64), torch.tensor(costs, dtype=torch.float64))

    @classmethod
    def together(cls, items: Sequence[Item]) -> Item:
        """Several items that take the same option, as one."""
        return cls(torch.stack([i.sizes for i in items]).sum(0), torch.stack([i.costs for i in items]).sum(0))


def allocate(items: Sequence[Item], limit: int) -> list[int]:
    """The options of least total cost whose total size is at most the limit, one for each item.

        min Σₖ costₖ[oₖ]   subject to   Σₖ sizeₖ[oₖ] ≤ limit

    Returns:
        The index oₖ of each item's option. Of equal costs a smaller size wins.

    Raises:
        ValueError: even the smallest options are above the limit, or a cost is not finite.
    """
    if not all(item.costs.isfinite().all() for item in items):
        raise ValueError("a cost is NaN or infinite: no allocation is the cheapest")
    smallest = sum(int(item.sizes.min()) for item in items)
    if smallest > limit:
        raise ValueError(f"the smallest options add up to {smallest:,}, and the limit is {limit:,}")
    useful = [_frontier(item.sizes, item.costs) for item in items]
    hulls = [_hull(item, kept) for item, kept in zip(items, useful, strict=True)]
    rests = [_Relaxed.of(hulls[k:]) for k in range(len(items) + 1)]
    slack = ROUNDING * sum(float(item.costs.abs().max()) for item in items)
    known = rests[0].reached(limit) + slack
    sizes, costs = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    trail = []
    for item, kept, rest in zip(items, useful, rests[1:], strict=True):
        sizes = (sizes[:, None] + item.sizes[kept]).flatten()
        costs = (costs[:, None] + item.costs[kept]).flatten()
        alive = costs + rest.least(limit - sizes) <= known
        found = alive.nonzero()[:, 0]
        found = found[_frontier(sizes[found], costs[found])]
        sizes, costs = sizes[found], costs[found]
        trail.append((found // len(kept), kept[found % len(kept)]))
    return _walk_back(trail, int(costs.argmin()))


def _walk_back(trail: list[tuple[Tensor, Tensor]], place: int) -> list[int]:
    """The option of each item on the way to the last state at this place."""
    chosen = []
    for parents, options in reversed(trail):
        chosen.append(int(options[place]))
        place = int(parents[place])
    return chosen[::-1]


def _frontier(sizes: Tensor, costs: Tensor) -> Tensor:
    """Places of those that no other beats in both, by rising size and falling cost."""
    order = torch.argsort(costs, stable=True)
    order = order[torch.argsort(sizes[order], stable=True)]
    best = costs[order].cummin(0).values
    falls = torch.ones(len(order), dtype=torch.bool)
    falls[1:] = costs[order][1:] < best[:-1]
    return order[falls]


def _hull(item: Item, kept: Tensor) -> list[Point]:
    """The corners (size, cost) of the lower convex hull of an item's undominated options."""
    hull: list[Point] = []
    for point in zip(item.sizes[kept].tolist(), item.costs[kept].tolist(), strict=True):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: Point, b: Point) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


@dataclass(frozen=True)
class _Relaxed:
    """The least cost by total size where items may mix two options: the corners of a convex line."""

    sizes: Tensor
    costs: Tensor

    @classmethod
    def of(cls, hulls: Sequence[Sequence[Point]]) -> _Relaxed:
        """Begins with the smallest option of every item, then takes the steepest steps first."""
        start = [sum(hull[0][axis] for hull in hulls) for axis in (0, 1)]
        steps = [(b[0] - a[0], b[1] - a[1]) for hull in hulls for a, b in pairwise(hull)]
        steps.sort(key=lambda step: step[1] / step[0])
        corners = torch.tensor([start, *steps], dtype=torch.float64).cumsum(0)
        return cls(corners[:, 0].contiguous(), corners[:, 1].contiguous())

    def least(self, room: Tensor) -> Tensor:
        """The relaxed cost in so much room, infinite where the smallest options don't fit."""
        room = room.double()
        left = (torch.searchsorted(self.sizes, room, right=True) - 1).clamp_min(0)
        right = (left + 1).clamp_max(len(self.sizes) - 1)
        width = (self.sizes[right] - self.sizes[left]).clamp_min(1)
        share = ((room - self.sizes[left]) / width).clamp(0, 1)
        found = self.costs[left] + share * (self.costs[right] - self.costs[left])
        return torch.where(room < self.sizes[0], torch.inf, found)

    def reached(self, limit: int) -> float:
        """The cost of a solution that is no mixture: the steepest steps, as long as they fit."""
        return float(self.costs[int((self.sizes <= limit).sum()) - 1])
