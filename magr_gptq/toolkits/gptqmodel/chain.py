"""The unquantized chain beside GPTQModel's, for `target="model"`; see `toolkits.undamaged`.

What is touched, why there, all undone by `Patches.undo`:

- `ModuleLooper._run_forward_batches`: every pass over the batches goes through it; the block's original runs
  each batch first. The last pass, which names no layers, gives the next block's inputs.
- `GPTQProcessor.pre_process_fwd_hook`: its hook takes a layer's inputs for the Hessian; they are paired.
- `GPTQ.process_batch`: see `gram`.
- `GPTQ.adopt_hessian_from`: layers with one input share its Hessian; they share its pairs.

GPTAQ and FOEM have a target of their own, and a model's head is no layer of a block: neither is followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gptqmodel.looper.gptq_processor import GPTQProcessor
from gptqmodel.looper.module_looper import ModuleLooper
from gptqmodel.quantization.gptq import GPTQ
from torch import Tensor

from magr_gptq.config import MagRConfig
from magr_gptq.reduction.target import Half
from magr_gptq.toolkits.gptqmodel import config as config_field
from magr_gptq.toolkits.gptqmodel import gram
from magr_gptq.toolkits.pairs import Pairs
from magr_gptq.toolkits.patching import Patches
from magr_gptq.toolkits.undamaged import UndamagedChain


def apply(patches: Patches) -> None:
    """Lead the unquantized chain along the toolkit's passes."""
    gram.apply(patches)
    patches.wrap(ModuleLooper, "_run_forward_batches", _run_forward_batches)
    patches.wrap(GPTQProcessor, "pre_process_fwd_hook", _pre_process_fwd_hook, ("self", "name"))
    patches.wrap(GPTQ, "adopt_hessian_from", _adopt_hessian_from, ("self", "leader"))


def halves_of(task: Any) -> list[Half] | None:
    """What both chains add up to at this task's layer, taken from it; None where there is no chain."""
    pairs = vars(task).pop("magr_pairs", None)
    # a padded layer's Hessian has columns that the pairs lack
    return None if pairs is None or task._tp_pad_cols else pairs.halves


def chains_of(processors: Iterable[Any]) -> list[UndamagedChain]:
    """Those of these processors, none or one."""
    return [found for processor in processors if (found := _chain(processor)) is not None]


def _chain(processor: Any) -> UndamagedChain | None:
    """The chain of this processor's run; None where its layers aim at their own output."""
    if type(processor) is not GPTQProcessor or processor.qcfg.gptaq or processor.qcfg.foem:
        return None
    if not hasattr(processor, "magr_chain"):
        settings = [
            getattr(processor.qcfg, "magr", None),
            *(o["magr"] for o in config_field.overrides(processor.qcfg)),
        ]
        asked = any(magr and magr.aims_at_model for magr in map(MagRConfig.parse, settings))
        processor.magr_chain = UndamagedChain() if asked else None
    chain: UndamagedChain | None = processor.magr_chain
    return chain


def _run_forward_batches(original: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: Any, **given: Any) -> Any:
        """The toolkit's own pass, in which the block's original runs each batch first."""
        processor, block = given["processor"], given["module"]
        chain = None if given["is_lm_head_module"] else _chain(processor)
        if chain is None or chain.lost:
            return original(self, **given)
        inputs = given["layer_inputs"]

        def run_original(_: Any, args: Any, kwargs: Any) -> None:
            number = processor.current_batch_index()
            chain.run(number, args, kwargs, home=inputs[number][0].device, kept=_kept(processor))

        wanted = [
            name for name in given.get("current_subset") or () if not processor.shared_input_leader(name)
        ]
        chain.open(block, wanted)
        handle = block.register_forward_pre_hook(run_original, with_kwargs=True)
        try:
            return original(self, **given)
        finally:
            handle.remove()
            chain.close()

    return run


def _kept(processor: Any) -> Tensor | None:
    """Of the batch that this thread runs, [documents, tokens]: false where a token is padding."""
    kept: Tensor | None = getattr(getattr(processor, "_mask_tls", None), "value", None)
    return kept


def _pre_process_fwd_hook(original: Callable[..., Any]) -> Callable[..., Any]:
    def pre_process_fwd_hook(self: Any, name: str) -> Any:
        """The toolkit's own hook, then the pairs of the same batch."""
        hook, chain = original(self, name), _chain(self)
        if chain is None or chain.lost or self.shared_input_leader(name):
            return hook
        self.tasks[name].magr_pairs = Pairs()

        def pairing_hook(module: Any, inputs: Any, output: Any) -> None:
            with gram.of_batch() as made:
                hook(module, inputs, output)
            kept = _kept(self)
            # a padded layer's product is of more columns; tokens that the mask does not fit are all counted
            fits = kept is None or kept.shape == inputs[0].shape[:2]
            known = made if fits and not self.tasks[name]._tp_pad_cols else ()
            # of the task, as the toolkit keeps a hook for longer than its layer's sums are needed
            chain.pair(name, self.tasks[name].magr_pairs, inputs[0], output, kept, *known)

        return pairing_hook

    return pre_process_fwd_hook


def _adopt_hessian_from(original: Callable[..., None]) -> Callable[..., None]:
    def adopt_hessian_from(self: Any, leader: Any) -> None:
        original(self, leader)
        pairs = getattr(leader, "magr_pairs", None)
        if pairs is not None and not pairs.of_output:
            self.magr_pairs = pairs

    return adopt_hessian_from
