"""Break the package on purpose, one place at a time, and see which test notices.

    python -m tools.mutations                     all of them
    python -m tools.mutations toolkits app        those of files whose path holds one of these words
    python -m tools.mutations --keep caught.json  goes on where such a run was stopped

Each mutation is made in a copy of the package in a temporary folder, never in the working tree. The table
names the first test that fails; the command fails where none does. Tests run in forks of this process, which
has imported what most of them need, so that a mutation costs seconds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("magr_gptq", "magr_score", "tests", "eval", "pyproject.toml")
UNUSED = shutil.ignore_patterns("__pycache__", "results")
OPTIONS = ("-x", "-q", "--tb=no", "-p", "no:cacheprovider")
WARM = ("torch", "transformers", "sklearn", "scipy.stats", "datasets", "accelerate", "hypothesis", "typer")


class Mutation(NamedTuple):
    """One text of one file of the package replaced by another, and the files of tests that should mind.

    only: as pytest's -k, where a file's other tests would take minutes.
    """

    file: str
    old: str
    new: str
    tests: str
    only: str = ""


# test file and tests
REFUSED = ("runtimes", "refused_by_name_and_leaves_nothing")
MUTATIONS = [
    Mutation(
        "reduction/prox.py",
        "(total - t * theta) / (mass + t)",
        "(total - t * theta) / (mass + 2 * t)",
        "prox",
    ),
    Mutation("reduction/prox.py", "not (mass < mass_before).any()", "not (mass < mass_before).all()", "prox"),
    Mutation("reduction/penalty.py", "3 * (2**bits - 1) ** 2", "3 * (2**bits) ** 2", "solver"),
    Mutation("reduction/penalty.py", "view.sum(-1) for view", "view.mean(-1) for view", "solver"),
    Mutation("reduction/admm.py", "OVER_RELAXATION = 1.4", "OVER_RELAXATION = 2.4", "convergence"),
    Mutation("reduction/admm.py", ".mul_((self.start / self.metric)[..., None, :])", "", "convergence"),
    Mutation(
        "reduction/admm.py",
        "factor.mul_(metric[..., None])",
        "factor.mul_(metric[..., None, :])",
        "convergence",
    ),
    Mutation(
        "tuning/linear.py", "index_add_(1, group, by_weight", "index_add_(1, group, 2 * by_weight", "tuning"
    ),
    Mutation(
        "tuning/linear.py",
        "scales.index_select(1, group) * codes",
        "scales.index_select(1, group) * codes.abs()",
        "tuning",
    ),
    Mutation("tuning/linear.py", "gradient @ codes.to(", "gradient @ codes.abs().to(", "tuning"),
    Mutation("tuning/stored.py", "value.to(dtype).to(value.dtype)", "value", "tuning"),
    Mutation("tuning/stored.py", "base + unit * offset", "base + offset", "tuning"),
    Mutation("tuning/loss.py", "kl_div(q, p,", "kl_div(p, q,", "tuning"),
    Mutation("tuning/loss.py", "original.detach()", "original", "tuning"),
    Mutation("tuning/descent.py", "max(divergence, 0.0) / layers)", "max(divergence, 0.0))", "tuning"),
    Mutation("tuning/stopping.py", "value.detach().clone()", "value.detach()", "tuning"),
    Mutation("tuning/stopping.py", "loss < self.losses[self.at]", "loss <= self.losses[self.at]", "tuning"),
    Mutation(
        "app/tuning/tuning.py",
        "Generator().manual_seed(SEED + number)",
        "Generator().manual_seed(torch.seed() + number)",
        "tune",
        "cut_off",
    ),
    Mutation(
        "app/tuning/windows.py",
        "place = max(place, start + length)",
        "place = max(place, start)",
        "tune",
        "overlap",
    ),
    Mutation("reduction/descent.py", "hessian, alpha=-1", "hessian, alpha=-0.5", "solver convergence"),
    Mutation(
        "reduction/solver.py", "improved = after <= before", "improved = after <= torch.inf", "numerics"
    ),
    Mutation("reduction/solver.py", "back = order.argsort(-1)", "back = order", "solver"),
    Mutation("reduction/solver.py", "chunk = -(-chunk // 2)", "chunk = chunk // 2", "solver"),
    Mutation("reduction/hessian.py", "10 * shift, shift)", "shift, shift)", "numerics"),
    Mutation("reduction/hessian.py", "10 * shift, shift)", "10 * shift, 10 * shift)", "numerics"),
    Mutation("reduction/hessian.py", "half - exponent", "half", "numerics"),
    Mutation(
        "reduction/hessian.py", "product[start:end, end:].mT", "product[end:, start:end]", "gram_matrix"
    ),
    Mutation(
        "reduction/hessian.py",
        "rows = _permuted(self._given, self._order)",
        "rows = self._given.clone()",
        "solver",
    ),
    Mutation("rounding/kept.py", ".min(0)", ".max(0)", "layer"),
    Mutation("rounding/choice.py", "kappa * shrinkage", "shrinkage", "layer refine"),
    Mutation("rounding/choice.py", "shrinkage.clamp_min(0)", "shrinkage", "numerics"),
    Mutation("rounding/kernels/plain.py", "1 / (curvature * step)", "0.5 / (curvature * step)", "refine"),
    Mutation(
        "rounding/sweep.py",
        "hessian[block, block.stop :], alpha=-1",
        "hessian[block, block.stop :], alpha=-0.5",
        "refine",
    ),
    Mutation("rounding/scales.py", "(1 + kappa) / (1 + kappa * slope)", "1 / slope", "refine"),
    Mutation("rounding/scales.py", "(1 + kappa) / (1 + kappa * slope)", "1 + 0 * slope", "refine"),
    Mutation(
        "rounding/scales.py",
        "gram[:, group, group:] = gram[:, group:, group] =",
        "gram[:, group, group:] =",
        "scales",
    ),
    Mutation(
        "reduction/kernels/plain.py",
        "slice(start, start + chunk)",
        "slice(start, start + chunk - 1)",
        "kernels",
    ),
    Mutation(
        "reduction/hessian.py",
        "product += (rows[..., after] @ hessian[..., after, here]).mul_(2)",
        "pass",
        "numerics",
    ),
    Mutation("rounding/scales.py", "gain < LARGEST", "gain < 1e9", "refine"),
    Mutation("rounding/step.py", "top / (top - rise)", "1.0", "grid"),
    Mutation("rounding/step.py", "zero + rise", "zero", "grid"),
    Mutation("rounding/kept.py", "other.criterion < self", "other.criterion > self", "layer"),
    Mutation("rounding/kept.py", "best + layer.numbers[0]", "best", "layer"),
    Mutation("rounding/kept.py", "masked_fill(broken, torch.nan)", "clone()", "layer"),
    Mutation("rounding/kept.py", ".add_(rounded.lowest).sub_(", ".sub_(", "layer"),
    Mutation("rounding/rounded.py", "self.weight.mul_(self", "self.weight.mul(self", "layer"),
    Mutation("rounding/settle.py", "moved or not torch.equal", "moved or torch.equal", "layer"),
    Mutation("rounding/layer.py", "plan.factors[list(self.numbers)]", "plan.factors[:1]", "layer"),
    Mutation("config/plan.py", "PLAIN = Candidate(None)", "PLAIN = Candidate(None, (0.9,))", "config"),
    Mutation("config/settings.py", "1e-3 if group_size == -1 else 1e-4", "1e-4", "config"),
    Mutation(
        "rounding/scales.py",
        "(signal * quantized, size) - gram.sum(2)",
        "(signal * quantized, size)",
        "scales",
    ),
    Mutation("rounding/scales.py", "(group_of.diff() < 0).any()", "False", "scales"),
    Mutation("rounding/scales.py", "change * _within_bounds(change)", "change * 1.0", "scales"),
    Mutation("rounding/step.py", ".argmin(-1", ".argmax(-1", "factors"),
    Mutation("config/plan.py", "c.factors[:1] * (most", "(0.5,) * (most", "layer"),
    Mutation("config/settings.py", "*(-beta for beta in betas)", "*betas", "config"),
    Mutation("config/settings.py", "STRENGTHS_WITHOUT_MIRROR if", "STRENGTHS if", "config"),
    Mutation("rounding/settle.py", "best.rescale_(fitted", "(lambda _: best)(fitted", "layer"),
    Mutation("rounding/rounded.py", "scale=self.scale * factors", "scale=self.scale", "layer"),
    Mutation("rounding/settle.py", "2**bits - 1", "2**bits", "layer"),
    Mutation("reduction/shrinkage.py", "(1 + 1 / mean", "(0 + 1 / mean", "shrinkage"),
    Mutation("reduction/target.py", "second.whole > 0", "second.whole >= 0", "target"),
    Mutation(
        "reduction/target.py",
        "rho = shrinkage_by_documents(halves) if",
        "rho = shrinkage_of_halves(halves[0].gram, halves[1].gram) if",
        "target",
    ),
    Mutation(
        "toolkits/layer_step.py",
        "if len(halves) == 2 else None",
        "if False else None",
        "layer_step",
    ),
    Mutation("reduction/held_out.py", "for step in (1, -1)", "for step in (1,)", "held_out"),
    Mutation("reduction/held_out.py", "(before - after) /", "(after - before) /", "held_out"),
    Mutation("reduction/held_out.py", "/ diagonal_of(b).sum()", "", "target"),
    Mutation("reduction/held_out.py", "hessian.flip(0, 1)", "hessian", "held_out"),
    Mutation("reduction/held_out.py", "(2 * signs - 1)", "signs", "held_out"),
    Mutation("app/tuning/windows.py", "min(len(others), job.samples)", "0", "tune"),
    Mutation("reduction/importance.py", ".sum(0).sqrt()", ".sum(0)", "importance"),
    Mutation("reduction/target.py", "weighed.mul_(size)", "weighed", "target"),
    Mutation("toolkits/weighing.py", "if x is calls[name][0]", "if True", "weighing"),
    Mutation("toolkits/weighing.py", "mapped(_detached, kwargs)", "pass", "weighing"),
    Mutation("toolkits/weighing.py", "u *= kept", "u * kept", "weighing"),
    Mutation("toolkits/pairs.py", "half.whole = int(whole)", "half.whole = 1", "undamaged"),
    Mutation(
        "rounding/kernels/plain.py",
        "residual.mT.clone(memory_format=torch.contiguous_format)",
        "residual.mT.contiguous()",
        "refine",
    ),
    Mutation("toolkits/pairs.py", " - (half == first == 0)", "", "undamaged"),
    Mutation("reduction/shrinkage.py", "diagonal.copy_(kept)", "pass", "shrinkage"),
    Mutation(
        "reduction/shrinkage.py", "_agreement(first, second) /", "_agreement(first, whole) /", "shrinkage"
    ),
    Mutation("reduction/shrinkage.py", "total - (inverse > 0).sum()", "total", "shrinkage"),
    Mutation("reduction/target.py", "2 * by_halves / (1 + by_halves)", "by_halves", "target"),
    Mutation("reduction/shrinkage.py", "2 * rho / (1 + rho)", "rho", "target"),
    Mutation("reduction/target.py", "weight[rows] @ self.lacking", "self.lacking", "target"),
    Mutation("reduction/target.py", "-(-len(original) // ROWS)", "1", "target"),
    Mutation(
        "toolkits/undamaged.py",
        "undamaged.to(spoiled.device).float() - spoiled.float()",
        "undamaged.to(spoiled.device).float()",
        "undamaged",
    ),
    Mutation(
        "toolkits/undamaged.py",
        "lacking += here.missing_stream(place).to(spoiled.device)",
        "pass",
        "undamaged",
    ),
    Mutation(
        "toolkits/pairs.py", "torch.arange(len(kept))) % 2", "torch.arange(len(kept))) % 1", "undamaged"
    ),
    Mutation("toolkits/pairs.py", "side[0] = kept[0].cumsum(0) > kept[0].sum() // 2", "pass", "undamaged"),
    Mutation(
        "allocation/sample.py",
        "bits.repeat_interleave(len(weight), 0)",
        "bits.repeat(len(weight), 1)",
        "allocation",
    ),
    Mutation(
        "allocation/worth.py",
        "squares[:, None, self.sample.rows]",
        "squares.mean(0)[self.sample.rows]",
        "allocation",
    ),
    Mutation("allocation/worth.py", "spoken_for * share", "spoken_for", "allocation"),
    Mutation("allocation/columns.py", "work[start:end].clone()", "work[start:end]", "allocation"),
    Mutation("allocation/worth.py", "foreseen[:, outliers] = 0", "pass", "allocation"),
    Mutation(
        "allocation/sample.py",
        "amax(1).argsort(descending=True, stable=True)",
        "amax(1).argsort()",
        "allocation",
    ),
    Mutation(
        "allocation/fisher.py", "direction.sub_(p.mul_", "direction.add_(p.mul_", "allocation", "fisher"
    ),
    Mutation("allocation/fisher.py", "p.sqrt()", "p.clone()", "allocation", "fisher"),
    Mutation("allocation/worth.py", "range(STEPS)", "range(1)", "allocation", "so_many_means"),
    Mutation("app/planning/survey.py", "rows[~weighs], rows[weighs]", "rows, rows", "bits", "third_window"),
    Mutation("app/planning/alike.py", "fuses or EXPERTS in", "fuses or layer in", "bits", "nothing_is_fused"),
    Mutation("app/planning/decide.py", "found.layers, fuses)", "found.layers)", "bits", "cost_less"),
    Mutation("app/planning/written.py", " or unit == head", "", "bits", "output_layer"),
    Mutation("app/planning/planner.py", "head=plan.head is not None)", "head=False)", "bits", "output_layer"),
    Mutation("app/planning/survey.py", "head.weight is model", "head is model", "bits", "is_the_embeddings"),
    Mutation("allocation/sample.py", "if frequency is not None", "if False", "bits", "most_frequent"),
    Mutation("app/planning/survey.py", "model if head_among(turn) else", "", "bits", "most_frequent"),
    Mutation("app/planning/planner.py", "(job.group_size, -1)", "(job.group_size,)", "bits", "its_size"),
    Mutation("app/planning/planner.py", " or size == largest", "", "bits", "most_bits"),
    Mutation("allocation/sample.py", "(self.variances / hessian.unit)", "self.variances", "allocation"),
    Mutation("allocation/sample.py", "min(plan.iterations, MOST_ITERATIONS)", "4", "allocation"),
    Mutation("allocation/sample.py", "width.bits - 1)) ** 2", "width.bits - 1))", "allocation", "beyond"),
    Mutation("app/planning/survey.py", "costs[places] * times", "costs[places]", "bits", "beyond"),
    Mutation("app/planning/written.py", "if alike else", "if True else", "bits", "dynamic"),
    Mutation("app/tuning/tuning.py", "min(PASSES * a_pass, MOST_STEPS)", "PASSES * a_pass", "tune", "thrice"),
    Mutation("config/settings.py", "STRENGTHS = (0.04, 0.1)", "STRENGTHS = (0.04, 0.6)", "config"),
    Mutation("toolkits/pairs.py", "gram -= some.gram", "pass", "undamaged"),
    Mutation("toolkits/pairs.py", "if place[1] != devices[0]]", "if False]", "devices"),
    Mutation("toolkits/pairs.py", "self._dropped = True", "pass", "undamaged"),
    Mutation("toolkits/undamaged.py", "for pairs in self._paired:", "for pairs in ():", "undamaged"),
    Mutation("toolkits/undamaged.py", "self.lost, self._original", "_, self._original", "undamaged"),
    Mutation("toolkits/undamaged.py", " or is_distributed()", "", "undamaged"),
    Mutation("toolkits/block_passes.py", "self._chain.let_go()", "pass", "undamaged"),
    Mutation("toolkits/undamaged.py", "undamaged.to(spoiled.device)", "undamaged", "devices"),
    Mutation("toolkits/quantizer.py", "factors.to(scale.device)", "factors", "devices"),
    Mutation("toolkits/gptqmodel/rounding.py", "group_of).to(weight.device)", "group_of)", "devices"),
    Mutation(
        "toolkits/gptqmodel/gram.py", "found.to(product.device) + product", "found + product", "devices"
    ),
    Mutation("toolkits/pairs.py", "masked_fill_(~kept, -1)", "clone()", "undamaged"),
    Mutation("toolkits/original.py", "next(first.parameters())", "next(block.parameters())", "original"),
    Mutation("toolkits/copying.py", "copy.deepcopy(dict(held))", "dict(held)", "copying"),
    Mutation("toolkits/copying.py", "instead[id(hook)] = hook", "pass", "copying"),
    Mutation("toolkits/copying.py", "remove_hook_from_module(module)", "pass", "copying"),
    Mutation("toolkits/copying.py", "module.forward = MethodType(forward, module)", "pass", "copying"),
    Mutation("toolkits/original.py", " and inside <= self._layout.returned:", ":", "original"),
    Mutation(
        "toolkits/original.py",
        "if BLOCK not in here.pending and _is_small(output)",
        "if BLOCK not in here.pending",
        "original",
    ),
    Mutation("toolkits/original.py", "self._kept.pop((child, number), None)", "pass", "original"),
    Mutation("toolkits/undamaged.py", "block is not self._block", "True", "undamaged"),
    Mutation(
        "toolkits/undamaged.py", "self._last = not wanted", "self._last = not self._wanted", "undamaged"
    ),
    Mutation("toolkits/original.py", "raise _Enough", "pass", "undamaged"),
    Mutation("toolkits/undamaged.py", "if not any(p.isdigit()", "if all(p", "undamaged"),
    Mutation("toolkits/block_passes.py", "owner is block for", "True for", "undamaged"),
    Mutation("toolkits/block_passes.py", "self._batch += 1", "pass", "undamaged"),
    Mutation(
        "toolkits/block_passes.py", "args, kwargs, self._home)", "args, kwargs)", "undamaged", "keeps_its_own"
    ),
    Mutation("toolkits/stream.py", "torch.equal(before + output, after)", "True", "undamaged"),
    Mutation("reduction/shrinkage.py", "(live * (live - 1))", "(live * live)", "shrinkage"),
    Mutation("reduction/shrinkage.py", "share = 2 / tokens", "share = 1 / tokens", "shrinkage"),
    Mutation("reduction/shrinkage.py", ", rho.to(values))", ", rho.to(values) + 1)", "shrinkage"),
    Mutation("reduction/shrinkage.py", "torch.where(live, values - mean, 0)", "values - mean", "shrinkage"),
    Mutation(
        "toolkits/layer_step.py",
        "even_(shrink_(hessian, rho), rho, given.tokens)",
        "shrink_(hessian, rho)",
        "layer_step",
    ),
    Mutation("reduction/kernels/fusing.py", "if name not in _failed:", "if True:", "kernels"),
    Mutation("reduction/kernels/fusing.py", "torch.cuda.device_of(matrix)", "nullcontext()", "kernels"),
    Mutation(
        "rounding/order.py",
        "values[:, 0].argsort(descending=True",
        "values[:, 0].argsort(descending=False",
        "order",
    ),
    Mutation(
        "rounding/order.py",
        "rounded.group_of[order[first]].argsort()",
        "rounded.group_of[order[first]]",
        "order",
    ),
    Mutation("rounding/rounded.py", "held.isfinite() & (held != 0)", "held.isfinite()", "layer"),
    Mutation(
        "toolkits/roads.py",
        "    finally:\n        passage.restore(layer)",
        "    finally:\n        pass",
        "layer_step",
    ),
    Mutation(
        "toolkits/roads.py",
        "together[:, self.order], hessian[self.order][:, self.order]",
        "together, hessian",
        "layer_step",
    ),
    Mutation("toolkits/roads.py", "is_out_of_memory(error)", "False", "layer_step"),
    Mutation("toolkits/gptqmodel/adapter.py", "        task.H = hessian\n", "", "gptqmodel", "share"),
    Mutation(
        "toolkits/layer_step.py",
        "layers[number].passage.restore(layer)",
        "pass",
        "layer_step",
    ),
    Mutation("toolkits/layer_step.py", "if not given.hessian.diagonal().any()", "if False", "layer_step"),
    # adapters
    Mutation("toolkits/gptqmodel/adapter.py", "weighed_(found, halves)", "found", "model_target", "weighed"),
    Mutation(
        "toolkits/gptqmodel/adapter.py",
        "config.desc_act or task._tp_pad_cols or corrects",
        "config.desc_act or corrects",
        "gptqmodel",
        "pads",
    ),
    Mutation(
        "toolkits/gptqmodel/adapter.py",
        "tokens=None if corrects else int(task.nsamples)",
        "tokens=int(task.nsamples)",
        "gptqmodel",
        "columns_stay_in_order",
    ),
    Mutation(
        "toolkits/gptqmodel/rounding.py",
        "weight = weight.clone()",
        "pass",
        "gptqmodel",
        "single_candidate",
    ),
    Mutation(
        "toolkits/gptqmodel/rounding.py",
        "if task.module is not stand_in:",
        "if False:",
        "gptqmodel",
        "after_nan",
    ),
    Mutation(
        "toolkits/gptqmodel/rounding.py",
        "(*key(task, ordering), self._kind)",
        "key(task, ordering)",
        "gptqmodel",
        "changed_otherwise",
    ),
    Mutation(
        "toolkits/gptqmodel/config.py",
        'meta_payload["magr"] =',
        'meta_payload["margin"] =',
        "gptqmodel",
        "saved_under_meta",
    ),
    Mutation(
        "toolkits/gptqmodel/resume.py",
        "report is not None and report.layers",
        "False",
        "gptqmodel_resume",
        "what_is_kept",
    ),
    Mutation(
        "toolkits/gptqmodel/calibration.py",
        "len(calibration_dataset) - left",
        "0",
        "gptqmodel",
        "too_short",
    ),
    Mutation("toolkits/report.py", "vars(self).update(state)", "pass", "gptqmodel", "pickled"),
    Mutation(
        "toolkits/quantizer.py",
        "self.scale, self.zero = shrink_grid",
        "shrink_grid",
        "gptqmodel",
        "without_a_subclass",
    ),
    Mutation(
        "toolkits/llmcompressor/modifier.py",
        "observe_alone(module.weight_observer, module.weight)",
        "pass",
        "faults",
        "compressor and LinAlgError",
    ),
    Mutation(
        "toolkits/llmcompressor/modifier.py",
        "size // len(self._plan(batch[0]).candidates)",
        "size",
        "llmcompressor_layers",
        "cut_for_taller",
    ),
    Mutation(
        "toolkits/llmcompressor/modifier.py",
        "eager_where(mirrored)",
        "eager_where(False)",
        "llmcompressor_kernels",
        "never_reach",
    ),
    Mutation(
        "toolkits/llmcompressor/modifier.py",
        'held, home=torch.device("cpu")',
        "held",
        "model_target",
        "keeps_its_own",
    ),
    Mutation(
        "toolkits/llmcompressor/kernels.py",
        "_put_back(before)",
        "pass",
        "llmcompressor_kernels",
        "afterwards",
    ),
    Mutation(
        "toolkits/llmcompressor/stand_in.py",
        "rounded.scale.to(module.weight.dtype).float()",
        "rounded.scale",
        "llmcompressor_layers",
        "on_the_grid_that_is_stored",
    ),
    Mutation(
        "toolkits/llmcompressor/stand_in.py",
        "scale * best[..., 0]",
        "scale * 1.1",
        "llmcompressor_layers",
        "times_those_of_the_reduced",
    ),
    Mutation(
        "toolkits/optimum/adapter.py",
        "quantized.quantize_config.magr_report = report",
        "pass",
        "faults",
        "optimum and LinAlgError",
    ),
    # public reports
    Mutation(
        "toolkits/gptqmodel/adapter.py",
        "return weight, best.scale, best.zero",
        "return weight, best.scale / 3, best.zero",
        "public_reports",
        "904 or 912",
    ),
    Mutation(
        "toolkits/gptqmodel/adapter.py",
        "return magr.with_beta(1.0) if task.qcfg.mse else magr",
        "return magr",
        "public_reports",
        "825",
    ),
    Mutation("reduction/arguments.py", "if not value.isfinite():", "if False:", "numerics", "refused"),
    Mutation("app/text.py", "distinct >= DISTINCT * drawn", "distinct >= 0", "text", "overlap"),
    Mutation(
        "app/text.py", "for _ in range(count)]", "for _ in range(count - 1)]", "public_reports", "Olive"
    ),
    Mutation(
        "toolkits/gptqmodel/adapter.py",
        "str(task.name if named is None else named.full_name)",
        "str(task.name)",
        "public_reports",
        "2435",
    ),
    Mutation(
        "toolkits/gptqmodel/adapter.py",
        "return weight, best.scale, best.zero",
        "return weight, best.scale.flip(1), best.zero",
        "public_reports",
        "188",
    ),
    Mutation(
        "toolkits/gptqmodel/adapter.py",
        "LayerReport.of(_name(task), config.bits,",
        "LayerReport.of(_name(task), 4,",
        "public_reports",
        "773",
    ),
    Mutation(
        "app/text.py", '"\\n\\n".join(_jsonl_rows(path))', "next(_jsonl_rows(path))", "public_reports", "5650"
    ),
    Mutation(
        "toolkits/undamaged.py",
        "self._block = self._original = None",
        "self._block = None",
        "public_reports",
        "2538",
    ),
    Mutation("toolkits/undamaged.py", "(state, *rest), own,", "(state, *rest), kwargs,", "undamaged"),
    Mutation("toolkits/shared.py", "mapping[key] = value", "pass", "public_reports", "1837"),
    Mutation(
        "toolkits/optimum/adapter.py",
        "self.name = names[id(self.module)]",
        'self.name = names[id(self.module)].rpartition(".")[2]',
        "public_reports",
        "25455",
    ),
    Mutation("app/inputs.py", "tokens, length, beginning)", "tokens, length, ())", "public_reports", "1229"),
    Mutation(
        "../magr_score/windows.py", "length, limit, beginning)", "length, limit)", "public_reports", "1229"
    ),
    # two hosts
    Mutation(
        "toolkits/llmcompressor/ranks.py", "if 0 in ranks", "if False", "two_hosts", "without_calibration"
    ),
    Mutation(
        "toolkits/llmcompressor/modifier.py",
        "        super()._reduce_hessian_to_target_rank(module_list, module_to_rank)",
        "        pass",
        "two_hosts",
        "very_weights",
    ),
    # engines
    Mutation(
        "app/quantizing/by_gptqmodel.py",
        "    shutil.rmtree(folder / OFFLOAD)",
        "    pass",
        "gptqmodel",
        "leave_no_trace",
    ),
    Mutation(
        "app/quantizing/by_gptqmodel.py",
        '.pop("offload_to_disk_path", None)',
        "",
        "gptqmodel",
        "leave_no_trace",
    ),
    Mutation(
        "app/quantizing/layers.py", "layer.fallback or fallbacks.get(name)", "layer.fallback", "run_report"
    ),
    Mutation("app/quantizing/layers.py", "report.dropped = seen.dropped", "pass", "run_report"),
    Mutation(
        "app/quantizing/output.py",
        "    except BaseException:\n        shutil",
        "    except OSError:\n        shutil",
        "output",
    ),
    Mutation("toolkits/memory.py", "sum(needed", "max(needed", "layer_step"),
    Mutation("toolkits/memory.py", "kept = torch.cuda", "kept = 0 * torch.cuda", "layer_step"),
    # what a runtime, an engine or an option can't take is refused before the work
    Mutation("app/quantizing/runtimes.py", "asked.bits not in self.bits", "False", *REFUSED),
    Mutation("app/quantizing/runtimes.py", "asked.engine not in (None, self.engine)", "False", *REFUSED),
    Mutation("app/quantizing/runtimes.py", "asked.desc_act and not", "False and not", *REFUSED),
    Mutation(
        "app/quantizing/runtimes.py",
        "RUNTIMES.get(name)",
        'RUNTIMES.get(name, RUNTIMES["transformers"])',
        *REFUSED,
    ),
    Mutation("app/quantizing/runtimes.py", "if not runtime.roads:", "if False:", *REFUSED),
    Mutation("app/quantizing/runtimes.py", "len(road.mixed) > 1", "len(road.mixed) >= 0", *REFUSED),
    Mutation("app/cli/sizing.py", "if len(given) > 1:", "if len(given) > 2:", *REFUSED),
    Mutation("app/cli/quantize.py", "if verify and trust_remote_code:", "if False:", *REFUSED),
    Mutation("app/cli/quantize.py", "        if given:\n", "        if not given:\n", *REFUSED),
    Mutation("app/quantizing/engines.py", "if name not in ENGINES:", "if False:", *REFUSED),
    # where neighbours surprise, users are told or spared
    Mutation(
        "app/quantizing/runtimes.py",
        'Runtime((Road("auto-gptq"),)',
        'Runtime((Road("auto-gptq"), Road("transformers"))',
        "runtimes",
        "gptq_v2",
    ),
    Mutation(
        "toolkits/gptqmodel/config.py",
        "static and aware and not ordered",
        "static and ordered",
        "gptqmodel",
        "static_groups and refused",
    ),
    Mutation(
        "toolkits/gptqmodel/config.py",
        "if asks and not matched:",
        "if False:",
        "gptqmodel",
        "reaches_no_layer",
    ),
    Mutation(
        "app/planning/alike.py",
        'return f"^{re.escape(fused)}$"',
        "return re.escape(fused)",
        "bits",
        "fused_name_alone",
    ),
    Mutation(
        "toolkits/layer_step.py", "finfo(plan.stored)", "finfo(torch.float32)", "layer_step", "fewer_digits"
    ),
    Mutation(
        "app/quantizing/by_gptqmodel.py",
        "config.dtype in (torch.float16, torch.bfloat16)",
        "False",
        "gptqmodel",
        "keeps_the_models_dtype",
    ),
    Mutation(
        "app/text.py",
        "tokens[start : start + own]",
        "tokens[start : start + length]",
        "optimum",
        "pad_or_cut",
    ),
    Mutation("app/quantizing/by_optimum.py", 'saved["dataset"] = None', "pass", "optimum", "calibration_set"),
    Mutation("app/quantizing/by_optimum.py", "saved.dataset = None", "pass", "optimum", "calibration_set"),
    Mutation(
        "app/quantizing/card.py", "if release and (note", "if not release and (note", "card", "differently"
    ),
    Mutation(
        "toolkits/llmcompressor/modifier.py",
        'packing_note(bits, version("compressed-tensors"))',
        "None",
        "llmcompressor",
        "differently",
    ),
    Mutation("app/console.py", "os.dup2(sink.fileno(), 2)", "pass", "console"),
    Mutation("app/console.py", "os.dup2(sink.fileno(), 1)", "pass", "console"),
    # commands
    Mutation("app/comparing/figures.py", ", parse_math=False", "", "report_html", "any_name"),
    Mutation("app/comparing/comparison.py", "except ImportError", "except KeyError", "compare", "file_locks"),
    Mutation("app/processes.py", "stdin=subprocess.DEVNULL", "stdin=None", "processes", "stdin_alone"),
    Mutation(
        "app/checks.py", "`magr-gptq quantize --allow-pickle`", "--allow-pickle", "compare", "pickled_weights"
    ),
    Mutation(
        "app/console.py", "if not bars.console.is_terminal and", "if False and", "compare", "line_by_line"
    ),
    Mutation(
        "app/cli/compare.py",
        'str(local_folder(base["model"]))',
        'str(base["model"])',
        "compare",
        "from_the_hub",
    ),
    Mutation("app/quantizing/child.py", "if tokens < least:", "if False:", "reliability", "would_leave_out"),
    Mutation(
        "app/checks.py",
        'if config.get("auto_map") and not trust_remote_code:',
        "if False:",
        "checks",
        "bad_input_model",
    ),
    Mutation(
        "app/checks.py",
        "except (SafetensorError, OSError) as error:",
        "except KeyError as error:",
        "checks",
        "bad_input_model",
    ),
    Mutation(
        "app/checks.py",
        "if any(name.endswith(QUANTIZED_TENSORS) for name in names):",
        "if False:",
        "checks",
        "bad_input_model",
    ),
    Mutation("app/checks.py", "set(_weight_map(folder)) - names", "set()", "checks", "bad_input_model"),
    Mutation("app/inputs.py", "if largest >= size:", "if largest > size:", "checks", "another_model"),
    Mutation(
        "app/inputs.py",
        'missing = sorted(loaded[1]["missing_keys"])',
        "missing = []",
        "checks",
        "bad_input_weights",
    ),
    Mutation(
        "app/inputs.py",
        "ignore_patterns=[*UNUSED_FILES, *pickles, *code]",
        "ignore_patterns=[*UNUSED_FILES, *pickles]",
        "checks",
        "even_downloaded",
    ),
    Mutation("app/quantizing/space.py", "if free < wanted:", "if False:", "checks", "disk_that_is_too_small"),
    Mutation(
        "app/quantizing/output.py",
        "except OSError as error:\n        raise PublishError(",
        "except KeyError as error:\n        raise PublishError(",
        "output",
    ),
    Mutation(
        "app/quantizing/savable.py", "except Exception as error:", "except KeyError as error:", "savable"
    ),
    Mutation("app/quantizing/progress.py", "self._logger.setLevel(self._level)", "pass", "progress"),
    Mutation("app/processes.py", "{last_words(self.log, start)}what", "what", "processes", "last_words"),
    Mutation("app/text.py", "if len(tokens) <= own:", "if len(tokens) < own:", "text"),
    Mutation(
        "../magr_score/zero_shot.py",
        'softmax_dtype="float32"',
        "softmax_dtype=None",
        "compare_zero_shot",
        "summed_in_32",
    ),
    # kernels
    Mutation("reduction/kernels/__init__.py", "size <= LONGEST and", "", "kernels"),
    Mutation("reduction/kernels/fusing.py", "matrix.dtype == torch.float32", "True", "kernels"),
    Mutation("reduction/kernels/fusing.py", "except torch.OutOfMemoryError", "except KeyError", "kernels"),
]


def main() -> int:
    """Run the tests on every mutant, and those that fail on the package as it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", help="words of paths")
    parser.add_argument("--keep", type=Path, help="file of what was caught; what is in it is not tried again")
    args = parser.parse_args()
    chosen = [m for m in MUTATIONS if not args.files or any(word in m.file for word in args.files)]
    caught = Caught(args.keep)
    import_what_tests_need()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        # without bytecode: a mutation can leave size and time of a file as they were
        os.environ.update(PYTHONPATH=folder, PYTHONDONTWRITEBYTECODE="1")
        sys.dont_write_bytecode = True
        copy_into(copy)
        # before the first of them has taken any time
        for mutation in chosen:
            broken((copy / "magr_gptq" / mutation.file).read_text(encoding="utf-8"), mutation)
        print("| file | broken | test that failed |\n|---|---|---|", flush=True)
        for mutation in chosen:
            if mutation not in caught:
                test = try_out(copy, mutation)
                require_passing(copy, test, mutation)
                caught.add(mutation, test)
            told = caught[mutation] or "**none**"
            print(f"| {mutation.file} | `{mutation.old}` → `{mutation.new}` | {told} |", flush=True)
    survivors = [mutation for mutation in chosen if caught[mutation] is None]
    print(f"\n{len(chosen) - len(survivors)} of {len(chosen)} mutations caught")
    return int(bool(survivors))


class Caught:
    """The test that caught each mutation, None where none did; kept in a file where there is one."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        kept = json.loads(file.read_text(encoding="utf-8")) if file and file.exists() else []
        self._tests = {Mutation(*mutation): test for mutation, test in kept}

    def __contains__(self, mutation: Mutation) -> bool:
        # one that survived is tried again
        return self._tests.get(mutation) is not None

    def __getitem__(self, mutation: Mutation) -> str | None:
        return self._tests[mutation]

    def add(self, mutation: Mutation, test: str | None) -> None:
        self._tests[mutation] = test
        if self._file:
            self._file.write_text(json.dumps(list(self._tests.items()), indent=1), encoding="utf-8")


def import_what_tests_need() -> None:
    """Under the tests' environment, which torch reads as it is imported; of the package itself nothing."""
    runpy.run_path(str(ROOT / "tests" / "conftest.py"))
    os.environ["OMP_NUM_THREADS"] = "1"  # a process that has started threads must not be forked
    for name in WARM:
        importlib.import_module(name)
    assert not {"magr_gptq", "magr_score", "triton"} & set(sys.modules)


def require_passing(folder: Path, test: str | None, mutation: Mutation) -> None:
    """RuntimeError where the test fails without the mutation, too, and so proves nothing."""
    if test is None:
        return
    if "::" in test and passes(folder, test):
        return
    # a process that ended named no test, and a name with a dash in it was cut
    failed = first_failure(folder, mutation.tests, mutation.only)
    if failed:
        raise RuntimeError(f"without any mutation {failed} fails")


@cache
def passes(folder: Path, test: str) -> bool:
    """Whether a test passes on the package as it is."""
    return in_a_fork(folder, [*OPTIONS, str(folder / "tests" / test)])[0] == 0


def copy_into(folder: Path) -> None:
    """The package without its demo, the tests, and what they import; imported from there, not from here."""
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=UNUSED)
        else:
            shutil.copy(ROOT / part, folder / part)
    script = "import magr_gptq; print(magr_gptq.__file__)"
    imported = run(folder, "-c", script).stdout.strip()
    if not Path(imported).resolve().is_relative_to(folder.resolve()):
        raise RuntimeError(f"the tests would import {imported}, not the copy in {folder}")


def broken(text: str, mutation: Mutation) -> str:
    """A file's text with the mutation; RuntimeError where it has no place, or several."""
    if text.count(mutation.old) != 1:
        raise RuntimeError(f"{mutation.file} holds {text.count(mutation.old)} times: {mutation.old}")
    return text.replace(mutation.old, mutation.new)


def try_out(folder: Path, mutation: Mutation) -> str | None:
    """The first test to fail with the mutation, which is undone afterwards."""
    path = folder / "magr_gptq" / mutation.file
    text = path.read_text(encoding="utf-8")
    path.write_text(broken(text, mutation), encoding="utf-8")
    try:
        return first_failure(folder, mutation.tests, mutation.only)
    finally:
        path.write_text(text, encoding="utf-8")


def first_failure(folder: Path, tests: str, only: str = "") -> str | None:
    """The name of the first test to fail in these files, or None where all pass."""
    files = [str(file) for name in tests.split() for file in (folder / "tests").rglob(f"test_{name}.py")]
    status, printed = in_a_fork(folder, [*OPTIONS, "-k", only or "not memory_peak", *files])
    if status == 0:
        return None
    found = re.search(r"^FAILED tests/(.+?)(?: - .*)?$", printed, re.MULTILINE)
    if found is None and status not in (2, 4, 5) and only:
        return f"{only}: the process ended with {status}"  # GPTQModel ends it where a thread fails
    if found is None:
        raise RuntimeError(f"pytest ended with {status}:\n{printed}")
    return found[1]


def in_a_fork(folder: Path, arguments: list[str]) -> tuple[int, str]:
    """pytest's exit status and all that it printed; a process of its own group, of which nothing is left."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        child = os.fork()
        if child == 0:
            run_pytest(folder, arguments, printed.fileno())
        _, status = os.waitpid(child, 0)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        printed.seek(0)
        return os.waitstatus_to_exitcode(status), printed.read()


def run_pytest(folder: Path, arguments: list[str], output: int) -> NoReturn:
    """In place of the rest of this process."""
    status: int = pytest.ExitCode.INTERNAL_ERROR
    try:
        os.setpgid(0, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        sys.path[:] = [str(folder), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
        status = pytest.main(arguments)
        sys.stdout.flush()
    finally:
        os._exit(status)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


if __name__ == "__main__":
    sys.exit(main())
