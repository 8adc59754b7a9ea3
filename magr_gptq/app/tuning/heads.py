"""What turns a decoder's output into logits, apart from the decoder."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from magr_gptq.errors import InputError

# ‖L − R‖/‖R‖ of logits: another order of the same sums
LARGEST_DIFFERENCE = 1e-3


def decoder_of(model: Any) -> nn.Module:
    """The part of a causal model that ends with the last hidden state."""
    # transformers before 5 has get_decoder for some classes alone
    found: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    return found


class Head:
    """A copy of a causal model without its decoder: the output layer, and whatever its class does after that.

    It needs no decoder to be in memory, and takes any part of the positions.
    """

    def __init__(self, model: Any) -> None:
        self._given = _Given()
        self._model = copy.deepcopy(model, {id(decoder_of(model)): self._given}).requires_grad_(False)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits [windows, positions, vocabulary] of hidden states [windows, positions, width]."""
        self._given.hidden = hidden
        # what is passed as tokens is not looked at
        tokens = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        logits: Tensor = self._model(input_ids=tokens, use_cache=False).logits
        return logits

    def check(self, hidden: Tensor, logits: Tensor) -> None:
        """InputError where it doesn't make of a decoder's output what the whole model did."""
        if (self(hidden) - logits).float().norm() > LARGEST_DIFFERENCE * logits.float().norm():
            raise InputError(
                f"{type(self._model).__name__} does more with its decoder's output than tune can repeat; "
                "such models can't be tuned"
            )


class _Given(nn.Module):
    """In the decoder's place: answers with the hidden state that it was given."""

    hidden: Tensor

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPast:
        return _Output(last_hidden_state=self.hidden)  # type: ignore[arg-type]


class _Output(BaseModelOutputWithPast):
    """What else a class looks for in its decoder's output, such as attentions, is absent."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)
