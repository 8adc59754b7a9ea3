r"""Train the small language models that the demo and the evaluations quantize.

    python -m eval.studies.demo_model.train_model BOOKS --shape llama --steps 650 --decay-from 1 \
        --out A --log 1.jsonl
    python -m eval.studies.demo_model.train_model BOOKS --shape llama --steps 850 --decay-from 0 \
        --seed 1 --init A --out B --log 2.jsonl
    python -m eval.studies.demo_model.train_model BOOKS --shape llama --steps 900 --decay-from 0 \
        --seed 2 --init B --out C --log 3.jsonl

These three made the demo's model (the first was started with --steps 2200 --decay-from 0.5 and stopped
at 650, which is the same). BOOKS is a folder of UTF-8 .txt files; the last 4 % of each is held out.
The log has its perplexity: over the first 64 windows at every save, over all of them at the last.
Matrices are trained with Muon (orthogonalized momentum; K. Jordan, 2024), everything else with AdamW.
The result is a Hugging Face model folder: float16 safetensors and a tokenizer.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

HELD_OUT = 0.04
END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 2048
CONTEXT = 256

# in_features are multiples of 128, so that groups of 32, 64 and 128 all fit without a tail
SHAPES = {
    "llama": ("llama", {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
                        "num_attention_heads": 4, "num_key_value_heads": 4}),
    "gpt2": ("gpt2", {"n_embd": 256, "n_layer": 4, "n_head": 4}),
    "qwen": ("qwen2", {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
                       "num_attention_heads": 4, "num_key_value_heads": 2}),
    "llama-60m": ("llama", {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8,
                            "num_attention_heads": 12, "num_key_value_heads": 12}),
}  # fmt: skip


def split_books(folder: Path) -> tuple[list[str], list[str]]:
    """The first 96 % of every book, and the last 4 %."""
    books = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]
    if not books:
        raise SystemExit(f"{folder} holds no .txt file")
    cuts = [int(len(book) * (1 - HELD_OUT)) for book in books]
    pairs = list(zip(books, cuts, strict=True))
    return [book[:cut] for book, cut in pairs], [book[cut:] for book, cut in pairs]


def train_tokenizer(books: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 2,048 tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((line for book in books for line in book.splitlines(True)), trainer)
    specials = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END_OF_TEXT)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=CONTEXT, **specials)


def encode(tokenizer: PreTrainedTokenizerFast, books: list[str]) -> Tensor:
    """All books as one row of token ids, an end-of-text token after each."""
    end = tokenizer.eos_token_id
    encoded = tokenizer.backend_tokenizer.encode_batch(books)
    return torch.tensor([token for book in encoded for token in (*book.ids, end)])


def batches(tokens: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Endless shuffled epochs of windows [size, 256], each epoch cut at another offset."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        offset = int(torch.randint(CONTEXT, (), generator=generator))
        windows = tokens[offset:][: (len(tokens) - offset) // CONTEXT * CONTEXT].view(-1, CONTEXT)
        order = torch.randperm(len(windows), generator=generator)
        for picked in order[: len(order) // size * size].split(size):
            yield windows[picked]


def build(shape: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A freshly initialised model of one of SHAPES, head tied to the embedding."""
    kind, sizes = SHAPES[shape]
    end = tokenizer.eos_token_id
    length = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    config = AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, bos_token_id=end, eos_token_id=end, pad_token_id=end,
        tie_word_embeddings=True, use_cache=True, **{length: CONTEXT}, **sizes,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def next_token_loss(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """Mean negative log-likelihood of each window's tokens after its first."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: torch.nn.Module, tokens: Tensor, windows: int | None = None) -> float:
    """exp of the mean negative log-likelihood over windows of 256 without overlap."""
    rows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)[:windows]
    device = next(model.parameters()).device
    losses = [next_token_loss(model, batch.to(device)) * len(batch) for batch in rows.split(16)]
    return math.exp(float(torch.stack(losses).sum()) / len(rows))


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards UVᵀ of every matrix [B, m, n], m ≤ n."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized; matrices of one shape in one batched product."""

    def __init__(self, parameters: list[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = {}
            for parameter in group["params"]:
                by_shape.setdefault(tuple(sorted(parameter.shape)), []).append(parameter)
            for parameters in by_shape.values():
                self._step_stack(parameters, group["lr"], group["momentum"])

    def _step_stack(self, parameters: list[Tensor], lr: float, momentum: float) -> None:
        wide = []
        for parameter in parameters:
            velocity = self.state[parameter].setdefault("velocity", torch.zeros_like(parameter))
            velocity.lerp_(parameter.grad, 1 - momentum)
            update = parameter.grad.lerp(velocity, momentum)
            wide.append(update.mT if update.shape[0] > update.shape[1] else update)
        directions = orthogonalize(torch.stack(wide))
        for parameter, direction in zip(parameters, directions, strict=True):
            rows, columns = parameter.shape
            scale = max(1.0, rows / columns) ** 0.5
            parameter.sub_(direction.mT if rows > columns else direction, alpha=lr * scale)


def make_optimizers(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, norms and biases."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    parameters = list(model.parameters())
    matrices = [p for p in parameters if p.ndim == 2 and id(p) not in embeddings]
    chosen = {id(p) for p in matrices}
    others = [p for p in parameters if id(p) not in chosen]
    return [
        Muon(matrices, lr=0.02),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_at(step: int, steps: int, decay_from: float) -> float:
    """Warm-up over 20 steps, constant, then linear decay after the fraction `decay_from` of the steps."""
    decay = 1.0 if decay_from == 1 else (1 - step / steps) / (1 - decay_from)
    return min(1.0, (step + 1) / 20, decay)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """A float16 model folder that transformers 4 and 5 both read."""
    # the head is the embedding; saved once
    weights = {n: t.half() for n, t in model.state_dict().items() if n != "lm_head.weight"}
    model.save_pretrained(out, state_dict=weights)
    tokenizer.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config.pop("dtype", None)
    config["torch_dtype"] = "float16"
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    settings = json.loads((out / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def train(args: argparse.Namespace) -> None:
    """Train, logging one JSON line every `--every` steps, and save."""
    torch.manual_seed(args.seed)
    training, held_out = split_books(args.books)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.init) if args.init else train_tokenizer(training)
    model = build(args.shape, tokenizer).to(args.device)
    if args.init:
        model.load_state_dict(
            AutoModelForCausalLM.from_pretrained(args.init, dtype=torch.float32).state_dict()
        )
    tokens, test_tokens = encode(tokenizer, training), encode(tokenizer, held_out)
    args.log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with args.log.open("w") as log:
        print(json.dumps(header(args, model, tokens, test_tokens)), file=log, flush=True)
        for step, loss in steps_of(model, tokens, args):
            last = step == args.steps
            if last or step % args.every == 0:
                line = {
                    "step": step,
                    "loss": round(loss, 4),
                    "held_out_perplexity": round(perplexity(model, test_tokens, None if last else 64), 3),
                    "seconds": round(time.perf_counter() - start),
                }
                print(json.dumps(line), file=log, flush=True)
                save(model, tokenizer, args.out)


def header(
    args: argparse.Namespace, model: PreTrainedModel, tokens: Tensor, test_tokens: Tensor
) -> dict[str, object]:
    """The first line of the log: settings, sizes and versions."""
    settings = {name: getattr(args, name) for name in ("shape", "steps", "decay_from", "batch", "seed")}
    return {
        **settings,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_tokens": len(tokens),
        "held_out_tokens": len(test_tokens),
        "torch": torch.__version__,
    }


def steps_of(model: PreTrainedModel, tokens: Tensor, args: argparse.Namespace) -> Iterator[tuple[int, float]]:
    """Make the optimizer's steps; yields the number of each finished one and its loss."""
    device = torch.device(args.device)
    optimizers = make_optimizers(model)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: rate_at(step, args.steps, args.decay_from))
        for o in optimizers
    ]
    compiled, source = torch.compile(model), batches(tokens, args.batch, args.seed)
    for step in range(1, args.steps + 1):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = next_token_loss(compiled, next(source).to(device))
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        yield step, loss.item()


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("books", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="llama")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--init", type=Path, help="start from this model and tokenizer, with fresh momentum")
    parser.add_argument("--decay-from", type=float, default=0.5, help="fraction of the steps at full rate")
    parser.add_argument("--batch", type=int, default=16, help="windows of 256 tokens a step")
    parser.add_argument("--every", type=int, default=100, help="steps between two log lines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
