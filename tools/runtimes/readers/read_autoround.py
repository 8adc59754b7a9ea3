"""auto-round's kernels for CPUs, with a config of its own: they refuse GPTQModel's for its `meta`."""

import json
import shutil
import tempfile
from pathlib import Path

import auto_round  # noqa: F401 (makes its format known to transformers)
import torch
from reading import answer
from transformers import AutoModelForCausalLM


@torch.no_grad()
def logits(folder, tokens, _):
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        path = Path(copy, "config.json")
        config = json.loads(path.read_text())
        gptq = config["quantization_config"]
        config["quantization_config"] = {
            "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "data_type": "int",
            **{name: gptq[name] for name in ("bits", "group_size", "sym", "desc_act")},
        }  # fmt: skip
        path.write_text(json.dumps(config))
        Path(copy, "quantize_config.json").unlink(missing_ok=True)
        model = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float16, device_map="cpu")
        return model(input_ids=torch.from_numpy(tokens), use_cache=False).logits.float().numpy()


answer(logits, "auto-round", "transformers", "torch")
