"""Divergence of a quantized model's predictions, against its definition in float64."""

import pytest
import torch
from torch import nn

from eval.lib.fidelity import Text

VOCABULARY = 11
ROWS = torch.randint(VOCABULARY, (19, 6), generator=torch.Generator().manual_seed(0))


class Bigrams(nn.Module):
    """Logits that depend on the latest token alone."""

    device = torch.device("cpu")

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))

    def forward(self, input_ids, **_):
        return type("Output", (), {"logits": self.table[input_ids]})


def test_divergence_is_that_of_the_definition():
    original, model = Bigrams(0), Bigrams(1)
    p, q = (m.table.double().softmax(-1) for m in (original, model))
    wanted = (p * (p / q).log()).sum(-1)[ROWS[:, :-1]].mean()
    assert Text.of(original, ROWS).divergence(model) == pytest.approx(float(wanted), rel=1e-5)


def test_original_has_no_divergence_from_itself():
    assert Text.of(Bigrams(0), ROWS).divergence(Bigrams(0)) == 0


def test_perplexity_is_of_the_tokens_that_follow():
    q = Bigrams(1).table.double().softmax(-1)
    wanted = q[ROWS[:, :-1], ROWS[:, 1:]].log().mean().neg().exp()
    assert Text.of(Bigrams(0), ROWS).perplexity(Bigrams(1)) == pytest.approx(float(wanted), rel=1e-5)
