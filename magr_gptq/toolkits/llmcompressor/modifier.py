"""llm-compressor 0.14: `MagRGPTQModifier(..., magr=True)`, a subclass of its GPTQModifier.

Nothing in llm-compressor is changed for a recipe made in Python. `enable("llm-compressor")` makes
the class known by its name to recipes in YAML:

- `ModifierFactory._registered_registry`: looked up by name for every modifier of a YAML recipe;
  gains one entry behind the toolkit's own.

What the subclass overrides, and why there:

- `compress_module_list`: here a rank of torchrun, or the only process, has the whole Hessian of
  each module that it owns. A stand-in with candidate rows is rounded in the module's place; where grids are
  mirrored, with the toolkit's Triton kernel switched off for as long (`kernels`).
- `calibrate_module`: counts the tokens that go into a Hessian, and pairs inputs of both chains;
  `_reduce_hessian_to_target_rank` sums those of torchrun's ranks, as it sums their Hessians.
- `compress_modules`: ranks whose weights lie in shared CPU memory wait for each other.
- `on_initialize`: refuses what MagR can't apply to, and a rank without calibration rows; hooks the blocks,
  for the unquantized chain. `on_finalize`: takes those hooks away; raises where nothing was reduced.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from compressed_tensors.distributed import is_distributed
from compressed_tensors.offload import disable_offloading
from compressed_tensors.utils import getattr_chain
from llmcompressor.modifiers.factory import ModifierFactory
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.gptq.helpers import assign_batches
from loguru import logger
from pydantic import Field, PrivateAttr, field_serializer, field_validator, model_validator
from torch import Tensor
from torch import distributed as dist

from magr_gptq.config import MagRConfig, Plan
from magr_gptq.reduction.target import weighed_
from magr_gptq.rounding.rounded import Rounded
from magr_gptq.toolkits.block_passes import BlockPasses, blocks_of
from magr_gptq.toolkits.layer_step import LAYER_ERRORS, Aside, Given, first_line, quantize_together
from magr_gptq.toolkits.llmcompressor.kernels import eager_where
from magr_gptq.toolkits.llmcompressor.ranks import of_all_ranks, require_rows
from magr_gptq.toolkits.llmcompressor.scheme import grid_of, order_of, require_integer_grid
from magr_gptq.toolkits.llmcompressor.stand_in import StandIn, observe_alone, write_back
from magr_gptq.toolkits.packing import packing_note
from magr_gptq.toolkits.patching import Patches
from magr_gptq.toolkits.report import LayerReport, RunReport

# the observers that take the range as it is
RANGE_OBSERVERS = (None, "memoryless_minmax", "static_minmax", "minmax")

NO_INPUT = "no calibration token reached the layer; llm-compressor made its weight zero"
NEVER_CALLED = "the layer was not called during calibration; llm-compressor left its scale unset"
NOT_FACTORIZED = "llm-compressor could not factorize the Hessian and rounded to nearest; raise dampening_frac"


def apply(patches: Patches) -> None:
    """Let recipes in YAML name MagRGPTQModifier."""
    # a lookup falls through to the last map, a registration goes to the first: the toolkit's own
    own = {"MagRGPTQModifier": MagRGPTQModifier}
    patches.replace(
        ModifierFactory, "_registered_registry", ChainMap(ModifierFactory._registered_registry, own)
    )


class MagRGPTQModifier(GPTQModifier):
    """llm-compressor's GPTQModifier, which rounds MagR's weights; takes all of its arguments.

    magr: True, False, None, a dict or a MagRConfig. With False it is GPTQModifier, bit for bit.

    Raises:
        ValueError: a weight scheme that is not integer, by channel or by group, with 2 to 8 bits;
            an embedding among the targets.
        NothingReducedError: at the end of a run in which no layer was reduced.
    """

    magr: Any = Field(default=True, validate_default=True)

    _magr_report: RunReport = PrivateAttr(default_factory=RunReport)
    _tokens: dict[Any, Tensor] = PrivateAttr(default_factory=dict)
    _passes: BlockPasses | None = PrivateAttr(default=None)

    @property
    def magr_report(self) -> RunReport:
        """What was done to each layer; under torchrun, after the run, to the layers of all ranks."""
        return self._magr_report

    @field_validator("magr")
    @classmethod
    def _parse_magr(cls, setting: Any) -> MagRConfig | None:
        return MagRConfig.parse(setting)

    @field_serializer("magr")
    def _write_magr(self, magr: MagRConfig | None) -> dict[str, Any] | bool:
        # recipe.yaml leaves out what is None, and magr left out means True
        return False if magr is None else magr.to_dict()

    @model_validator(mode="after")
    def _require_integer_groups(self) -> MagRGPTQModifier:
        for name, scheme in self.resolved_config.config_groups.items():
            if self.magr is not None and scheme.weights is not None:
                require_integer_grid(scheme.weights, name)
        return self

    def on_initialize(self, state: Any, **kwargs: Any) -> bool:
        """GPTQModifier's, then a look at every module that it is to round."""
        initialized: bool = super().on_initialize(state, **kwargs)
        if self.magr is not None:
            require_rows(state.data.calib)
            for module in self._quantized_modules():
                name = self._module_names[module]
                # the scheme may come from an earlier modifier of the recipe
                require_integer_grid(module.quantization_scheme.weights, name)
                if isinstance(module, torch.nn.Embedding):
                    raise ValueError(
                        f"magr: {name} is an embedding, which has no Hessian and which GPTQModifier leaves "
                        f"without a scale; put it into ignore={[*self.ignore, name]}"
                    )
            if self.magr.aims_at_model:
                self._follow(state.model)
        return initialized

    def _follow(self, model: torch.nn.Module) -> None:
        """Lead the unquantized chain through the blocks that hold modules to be rounded."""
        held = blocks_of(model, set(self._quantized_modules()))
        for block, modules in held.items():
            # this hook, as all of the toolkit's, is off while it propagates
            self.register_hook(block, partial(self._begin, modules), "forward_pre")
        # the pipeline keeps hidden states there unless it is told otherwise, and does not tell modifiers
        self._passes = BlockPasses(held, home=torch.device("cpu"))

    def _begin(self, modules: list[Any], _module: Any, _args: Any) -> None:
        if self._passes is not None:
            for module in modules:
                self._passes.begin(module)

    def on_finalize(self, state: Any, **kwargs: Any) -> bool:
        """GPTQModifier's, then the report of all ranks: logged, and required to hold a reduced layer."""
        finalized: bool = super().on_finalize(state, **kwargs)
        if self._passes is not None:
            self._passes.finish()
        if self.magr is not None:
            self._complete_report()
            self._magr_report.require_some()
            logger.info(self._magr_report.summary())
            for bits in sorted({layer.bits for layer in self._magr_report.layers}):
                if note := packing_note(bits, version("compressed-tensors")):
                    logger.warning(note)
            if warning := self._magr_report.warning():
                logger.warning("magr, not as intended: {}", warning)
        return finalized

    def calibrate_module(self, module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        """GPTQModifier's, which adds a batch to the Hessian and counts sequences; counts their tokens."""
        super().calibrate_module(module, args, output)
        if self.magr is not None and isinstance(module, torch.nn.Linear):
            seen = args[0].new_full((), args[0].shape[:-1].numel(), dtype=torch.int64)
            self._tokens[module] = self._tokens.get(module, 0) + seen
            if self._passes is not None:
                self._passes.add(module, args[0], output)

    def _reduce_hessian_to_target_rank(self, module_list: list[Any], module_to_rank: dict[Any, int]) -> None:
        """GPTQModifier's, which sums the ranks' Hessians where a module is compressed; tokens, pairs, too."""
        for module in module_list:
            reduce = partial(dist.reduce, op=dist.ReduceOp.SUM, dst=module_to_rank[module])
            if module in self._tokens:
                reduce(self._tokens[module])
            if self._passes is not None:
                self._passes.sum_up(module, reduce)
        super()._reduce_hessian_to_target_rank(module_list, module_to_rank)

    def compress_modules(self) -> None:
        """GPTQModifier's; no rank reads on before all have written."""
        super().compress_modules()
        # what is left of modules that other ranks own
        for module in list(self._tokens):
            del self._tokens[module]
            if self._passes is not None:
                self._passes.end(module)
        # GPTQModifier broadcasts, and thereby waits, only where weights are on accelerators
        if is_distributed():
            dist.barrier()

    def compress_module_list(self, module_list: list[Any]) -> None:
        """GPTQModifier's, with a stand-in for every module that has a Hessian."""
        if self.magr is None:
            super().compress_module_list(module_list)
            return
        reached = {module: bool(self._hessians[module].any()) for module in module_list}
        for module in (module for module, was_reached in reached.items() if not was_reached):
            self._step_aside(module, NO_INPUT, "unreached")
            super().compress_module_list([module])
        modules = [module for module, was_reached in reached.items() if was_reached]
        for batch in assign_batches(modules, self.batched_quantization, self.block_size):
            for part in self._parts(batch):
                with torch.no_grad(), disable_offloading():
                    self._compress_batch(part)

    def _parts(self, batch: list[Any]) -> list[list[Any]]:
        """A batch that llm-compressor fitted into memory, cut for rows that are so many times more."""
        size = len(batch)
        if self.batched_quantization == "auto":
            size = max(1, size // len(self._plan(batch[0]).candidates))
        return [batch[start : start + size] for start in range(0, len(batch), size)]

    def _compress_batch(self, batch: list[Any]) -> None:
        """Round rows in place of the modules', and give the modules what came out."""
        given = {}
        for module in batch:
            try:
                given[module] = self._given(module)
            except LAYER_ERRORS as error:
                self._leave(module, Aside(first_line(error), self._hessians[module]))
        settled = quantize_together(list(given.values()), partial(self._round, list(given)))
        for module, found in zip(given, settled, strict=True):
            if isinstance(found, Aside):
                self._leave(module, found)
                continue
            del self._num_samples[module], self._hessians[module]
            name, grid = self._module_names[module], grid_of(module.quantization_scheme.weights)
            write_back(module, found.settled.rounded)
            report = LayerReport.of(name, *grid, found)
            failed = name in self._rtn_fallback_module_names
            self._magr_report.add(replace(report, fallback=NOT_FACTORIZED) if failed else report)

    def _given(self, module: Any) -> Given:
        """The module with its Hessian, its plan, and what both chains add up to."""
        pairs = self._passes.end(module) if self._passes else None
        halves = pairs.halves if pairs else None
        # which its order of columns is of, too
        hessian = weighed_(self._hessians[module], halves)
        return Given(
            weight=module.weight,
            hessian=hessian,
            plan=self._plan(module),
            tokens=int(self._tokens.pop(module, 0)) or None,
            in_order=not module.quantization_scheme.weights.actorder,
            halves=halves,
        )

    def _leave(self, module: Any, aside: Aside) -> None:
        """Have GPTQModifier round the module as it is; its observer may have seen other rows."""
        self._step_aside(module, aside.reason, aside.outcome)
        self._hessians[module] = aside.hessian
        observe_alone(module.weight_observer, module.weight)
        super().compress_module_list([module])

    def _round(self, batch: list[Any], passes: Iterable[tuple[int, Tensor, Tensor, Tensor]]) -> list[Rounded]:
        """Have GPTQModifier round a stand-in for each module, by its rows, their factors, and a Hessian."""
        stand_ins, mirrored = [], False
        try:
            for number, rows, factors, hessian in passes:
                module = batch[number]
                stand_ins.append(stand_in := StandIn(module, rows, factors))
                self._module_names[stand_in] = self._module_names[module]
                self._hessians[stand_in], self._num_samples[stand_in] = hessian, self._num_samples[module]
                mirrored |= bool((factors < 0).any())
            with eager_where(mirrored):
                super().compress_module_list(stand_ins)
        finally:
            for stand_in in stand_ins:
                for known in (self._module_names, self._hessians, self._num_samples):
                    known.pop(stand_in, None)
        return [stand_in.rounded() for stand_in in stand_ins]

    def _plan(self, module: Any) -> Plan:
        args = module.quantization_scheme.weights
        # observers that search choose the step by themselves
        magr = self.magr if args.observer in RANGE_OBSERVERS else self.magr.with_beta(1.0)
        plan: Plan = magr.resolve(*grid_of(args), order_of(args, self._hessians[module]), module.weight.dtype)
        return plan

    def _quantized_modules(self) -> list[Any]:
        return [
            module
            for module in self._module_names
            if getattr_chain(module, "quantization_scheme.weights", None) is not None
        ]

    def _step_aside(self, module: Any, why: str, outcome: str) -> None:
        name, grid = self._module_names[module], grid_of(module.quantization_scheme.weights)
        self._magr_report.add(LayerReport(name, *grid, skipped=why, aside=outcome))
        logger.warning("magr steps aside for {}: {}", name, why)

    def _complete_report(self) -> None:
        """Add what other ranks did, and the modules that no rank was given."""
        self._magr_report.layers = of_all_ranks(self._magr_report.layers)
        known = {layer.name for layer in self._magr_report.layers}
        for module in self._quantized_modules():
            if self._module_names[module] not in known:
                self._step_aside(module, NEVER_CALLED, "unreached")
