"""What a width costs: how far a model's predictions are expected to move when one layer is rounded to it.

Let v be a random vector whose covariance is the Fisher information of the model's prediction p
(`allocation.fisher`), and g = Jᵀv, with J the Jacobian of the logits by a layer's outputs. To second order,
rounding the layer's W to W + Δ moves the predictions by

    KL(p ‖ p') ≈ ½ E[(gᵀΔx)²] ≈ ½ Σ_r E[g_r²·(Δ_r x)²]        r over the layer's rows, E over tokens and v

The first step is the Fisher information at the layer's outputs (J. Martens, "New Insights and Perspectives on
the Natural Gradient Method", JMLR 21, 2020, section 5), the second takes the errors of different rows as
uncorrelated. K-FAC takes errors and gradients as independent, too (J. Martens and R. Grosse, ICML 2015). They
are not: where a token is loud its errors are large, and its gradient is small. So each token has its own
product here. The tokens are others than those that the rows are rounded for, as rounding fits its codes to
those. A sample of rows is rounded (`allocation.sample`), and stands for the others.

A few tokens have much of that sum, as it grows with the square of an error: more nats than any prediction
moves by. Later layers undo what is alike in all windows, such as the error of their first token, and few
tokens tell little of others. So a token's product c counts c/(1 + c/(32·m)), where m is the mean of just
that: about c where it is as others are, and never more than 32·m (eval/studies/bits).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# times the mean: what a token counts at most
LOUDEST = 32
# towards that mean; the last changes real layers' by less than 1e-4
STEPS = 20


@dataclass(frozen=True)
class Width:
    """A grid that a layer may be rounded to: bits, and columns that share a scale, −1 for the whole row."""

    bits: int
    group_size: int = -1


@dataclass(frozen=True)
class Sample:
    """Some rows of a layer, rounded to every width.

    rows: their places, [sampled] int64. outliers: so many of the first stand for themselves alone; the others
    stand for all that were not taken, too. changes: Δ of each, [widths, sampled, in].
    foreseen: `foreseen_error` of all rows, [widths, out].
    """

    rows: Tensor
    outliers: int
    changes: Tensor
    foreseen: Tensor

    def to(self, dtype: torch.dtype) -> Sample:
        """The same with changes of this dtype."""
        return replace(self, changes=self.changes.to(dtype))


class Worth:
    """What a sample's changes do to the predictions, token by token; see the top of this file.

    squares: Σ g² of every output over tokens, [out] float32.
    """

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        widths, outputs = sample.foreseen.shape
        self.squares = sample.foreseen.new_zeros(outputs)
        # of each batch, of the outliers and of the others, [2, tokens, widths]
        self._products = [sample.foreseen.new_zeros(2, 0, widths)]

    def moved(self, inputs: Tensor) -> Tensor:
        """Δx of the sampled rows at every width, [tokens, widths, sampled], for x [..., in]."""
        changes = self.sample.changes
        moved = inputs.detach().flatten(0, -2) @ changes.flatten(0, 1).mT
        return moved.view(len(moved), *changes.shape[:2])

    def add(self, moved: Tensor, gradient: Tensor) -> None:
        """Tokens whose outputs move so, with the gradient g at all outputs, [..., out]."""
        squares = gradient.flatten(0, -2).float().square()
        self.squares += squares.sum(0)
        products = moved.float().square() * squares[:, None, self.sample.rows]
        parts = products.tensor_split([self.sample.outliers], 2)
        self._products.append(torch.stack([part.sum(2) for part in parts]))

    def divergences(self, tokens: int) -> Tensor:
        """What is expected with this layer alone rounded, in nats a token: [widths] float64.

        What the sample costs, without its outliers, stands for all rows but those, in proportion to
        Σ_r E[g_r²]·`foreseen_error`_r.
        """
        foreseen = (self.sample.foreseen * self.squares).double()
        outliers, others = self.sample.rows.tensor_split([self.sample.outliers])
        sampled = foreseen[:, others].sum(1)
        foreseen[:, outliers] = 0
        # no gradient may reach the sampled rows; NaN stays NaN
        share = torch.where(sampled == 0, 1.0, foreseen.sum(1) / sampled)
        own, spoken_for = torch.cat(self._products, 1).double()
        products = own + spoken_for * share
        return (limited_mean(products) * len(products) / (2 * tokens)).cpu()


def limited_mean(products: Tensor) -> Tensor:
    """The mean m of c ≥ 0, [tokens, ...], over tokens, where none counts more than 32·m.

        m = mean of c/(1 + c/(32·m))

    From above, as one token of thousands of means must not set its own limit. It goes to 0 where less than
    one in 32 tokens costs anything.
    """
    count = max(1, len(products))
    mean = products.sum(0) / count
    for _ in range(STEPS):
        most = LOUDEST * mean
        # where all are 0; NaN stays NaN
        mean = (products / (1 + products / torch.where(most == 0, 1.0, most))).sum(0) / count
    return mean
