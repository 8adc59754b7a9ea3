"""Give a Llama outliers without changing what it computes, by rescaling channels between layers.

    python -m eval.studies.other_models.plant_outliers MODEL OUT --factor 10 --channels 4

In every block, some channels of each norm's output are divided by the factor and the columns of the
projections that read them multiplied; some rows of up_proj are multiplied and the columns of down_proj
that read them divided. So weights appear that are ten times the rest, as large models have them.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


@torch.no_grad()
def plant(model: PreTrainedModel, factor: float, channels: int, seed: int) -> None:
    """Rescale, in place; the model's outputs stay as they are, up to rounding."""
    generator = torch.Generator().manual_seed(seed)

    def some(count: int) -> torch.Tensor:
        return torch.randperm(count, generator=generator)[:channels]

    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        for norm, readers in (
            (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            picked = some(len(norm.weight))
            norm.weight[picked] /= factor
            for reader in readers:
                reader.weight[:, picked] *= factor
        picked = some(len(mlp.up_proj.weight))
        mlp.up_proj.weight[picked] *= factor
        mlp.down_proj.weight[:, picked] /= factor


def main() -> None:
    """Rescale a model folder into another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--channels", type=int, default=4, help="so many in every place")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    plant(model, args.factor, args.channels, args.seed)
    model.save_pretrained(args.out)
    AutoTokenizer.from_pretrained(args.model).save_pretrained(args.out)
    for name in ("config.json", "tokenizer_config.json"):
        # as the demo's model has them, which transformers 4 reads, too
        shutil.copy(args.model / name, args.out / name)


if __name__ == "__main__":
    main()
