"""Quantizing a tiny model with every toolkit of the environment; run by path in a process of its own.

python native_runs.py enabled MODEL OUT           an untouched toolkit: without magr, then after `enable`
python native_runs.py native MODEL OUT ENABLED    a patched toolkit: first without the package magr_gptq

writes OUT/off/ROAD and OUT/on/ROAD, and, where patched, OUT/answers.json: what it said, and to what.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM

MAGR = {"beta": 0.9, "refine": 1}


def by_gptqmodel(model: str, out: Path, magr=None):
    from gptqmodel_runs import quantize

    overrides = {} if magr is None else {"dynamic": {"+:.*v_proj": {"magr": False}}, "magr": magr}
    quantized = quantize(model, bits=3, group_size=32, sym=False, **overrides)
    quantized.save(str(out))
    return quantized.quantize_config


def by_gptaq(model: str, out: Path, magr=None):
    from gptqmodel_runs import quantize

    settings = {"beta": 0.9} if magr == MAGR else magr
    quantized = quantize(model, bits=2, group_size=-1, gptaq={"alpha": 0.25}, magr=settings)
    quantized.save(str(out))
    return quantized.quantize_config


def by_optimum(model: str, out: Path, magr=None):
    from optimum_runs import quantize_by_optimum

    return quantize_by_optimum(model, out, bits=3, group_size=32, magr=magr).quantize_config


def by_transformers(model: str, out: Path, magr=None):
    """`meta`, because transformers itself is not patched."""
    from optimum_runs import quantize_by_transformers

    meta = None if magr is None else {"magr": magr}
    return quantize_by_transformers(model, out, bits=2, group_size=32, meta=meta).quantize_config


def by_llmcompressor(model: str, out: Path, magr=None):
    import yaml
    from llmcompressor_runs import quantize, scheme

    modifier = {"config_groups": scheme(3, 32, False), "ignore": ["lm_head"]}
    name = "GPTQModifier" if magr is None else "MagRGPTQModifier"
    modifiers = {name: modifier if magr is None else {**modifier, "magr": magr}}
    quantize(yaml.safe_dump({"quantization_stage": {"quantization_modifiers": modifiers}}), model, out)


def by_autogptq(model: str, out: Path, magr=None):
    from auto_gptq import BaseQuantizeConfig
    from auto_gptq.modeling import _base
    from auto_gptq.modeling.llama import LlamaGPTQForCausalLM
    from tiny import calibration_rows

    # what stops AutoGPTQ on a machine without CUDA
    _base.CUDA_0 = torch.device("cpu")
    torch.cuda.synchronize = lambda: None
    config = BaseQuantizeConfig(3, 32, sym=False, **({} if magr is None else {"magr": magr}))
    loaded = AutoModelForCausalLM.from_pretrained(model, torch_dtype=torch.float16).eval()
    quantizable = LlamaGPTQForCausalLM(loaded, False, config)
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in calibration_rows()]
    quantizable.quantize(rows, batch_size=8)
    quantizable.save_quantized(str(out))
    return config


ROADS: dict[str, dict[str, Callable]] = {
    "modern": {
        "gptqmodel": by_gptqmodel,
        "gptaq": by_gptaq,
        "optimum": by_optimum,
        "transformers": by_transformers,
        "llm-compressor": by_llmcompressor,
    },
    "autogptq": {"auto-gptq": by_autogptq},
}
ENVIRONMENT = "autogptq" if importlib.util.find_spec("auto_gptq") else "modern"


def run_all(model: str, folder: Path, magr=None) -> None:
    for road, quantize in ROADS[ENVIRONMENT].items():
        config = quantize(model, folder / road, magr)
        if hasattr(config, "magr_report"):
            # threads finish in any order
            report = sorted(config.magr_report.to_dict(), key=lambda layer: layer["name"])
            (folder / road / "report.json").write_text(json.dumps(report))


def message(call: Callable, *args, **kwargs) -> str:
    """What the call raises."""
    try:
        call(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing raised"


def load_all(checkpoints: Path) -> dict[str, object]:
    """Checkpoints of layers that MagR reduced, loaded without magr_gptq: what their settings say."""
    if ENVIRONMENT == "autogptq":
        from auto_gptq import AutoGPTQForCausalLM

        cpu = {"device": "cpu", "disable_exllama": True, "disable_exllamav2": True}
        found = AutoGPTQForCausalLM.from_quantized(str(checkpoints / "auto-gptq"), **cpu)
        return {"auto-gptq": found.quantize_config.to_dict()["magr"]}
    from gptqmodel import BACKEND, GPTQModel
    from optimum.gptq import GPTQQuantizer

    found = GPTQModel.load(
        str(checkpoints / "gptqmodel"), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16
    )
    settings = json.loads((checkpoints / "optimum" / "quantize_config.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(checkpoints / "transformers", dtype=torch.float16)
    return {
        "gptqmodel": found.quantize_config.to_dict()["meta"]["magr"],
        "optimum": GPTQQuantizer.from_dict(settings).to_dict()["meta"]["magr"],
        "transformers": loaded.config.quantization_config.to_dict()["meta"]["magr"],
    }


def other_methods() -> dict[str, str]:
    """What the toolkits answer where `magr` can't apply."""
    from gptqmodel import QuantizeConfig
    from optimum.gptq import GPTQQuantizer

    found = {method: message(QuantizeConfig, method=method, magr={}) for method in ("awq", "qqq")}
    quantizer = GPTQQuantizer(bits=3, magr=True)
    quantizer.quantizeConfig = SimpleNamespace()
    return {**found, "another gptqmodel": message(quantizer.quantize_model, None)}


def resumed(model: str, out: Path) -> list[str]:
    """The layers in the report of a run that went on after it was stopped in the model's only block."""
    from gptqmodel.looper.checkpoint import CheckpointStopped
    from gptqmodel.looper.checkpoint_store import CheckpointConfig
    from gptqmodel_runs import load
    from tiny import calibration_rows

    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in calibration_rows()]
    for is_first in (True, False):
        offload = {"offload_to_disk": True, "offload_to_disk_path": str(out / "offload")}
        quantized = load(model, bits=3, group_size=32, magr=MAGR, **offload)
        if is_first:
            quantized.layer_callback = lambda **_: os.kill(os.getpid(), signal.SIGTERM)
        with suppress(CheckpointStopped):
            quantized.quantize(rows, batch_size=1, checkpoint=CheckpointConfig(path=str(out / "checkpoint")))
            assert not is_first
    return sorted(layer.name for layer in quantized.quantize_config.magr_report.layers)


def native(model: str, out: Path, enabled: Path) -> dict[str, object]:
    """Everything that a patched toolkit is asked."""
    roads = ROADS[ENVIRONMENT]
    # from here on `import magr_gptq` is a ModuleNotFoundError
    sys.modules["magr_gptq"] = None  # type: ignore[assignment]
    run_all(model, out / "off")
    answers: dict[str, object] = {
        "without the package": {
            r: message(quantize, model, out / "no", True) for r, quantize in roads.items()
        },
        "loaded": load_all(enabled / "on"),
    }
    if ENVIRONMENT == "modern":
        answers["other methods"] = other_methods()
    del sys.modules["magr_gptq"]
    run_all(model, out / "on", MAGR)
    if ENVIRONMENT == "modern":
        answers["resumed"] = resumed(model, out)
    answers["unknown setting"] = {
        r: message(quantize, model, out / "no", {"betta": 1}) for r, quantize in roads.items()
    }
    import magr_gptq

    first = "auto-gptq" if ENVIRONMENT == "autogptq" else "gptqmodel"
    answers["enable"] = message(magr_gptq.enable, first)
    names = ("auto_gptq", "gptqmodel", "optimum.gptq", "llmcompressor")
    answers["files"] = {name: sys.modules[name].__file__ for name in names if name in sys.modules}
    return answers


if __name__ == "__main__":
    mode, model_folder, out_folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if mode == "native":
        (out_folder / "answers.json").write_text(
            json.dumps(native(model_folder, out_folder, Path(sys.argv[4])))
        )
    else:
        run_all(model_folder, out_folder / "off")
        assert "magr_gptq" not in sys.modules
        import magr_gptq

        magr_gptq.enable()
        run_all(model_folder, out_folder / "on", MAGR)
