"""What findings need: versions printed, statements checked, a small random Llama, a real one with text."""

from __future__ import annotations

import atexit
import os
from importlib.metadata import distributions, version
from pathlib import Path

_changed: list[str] = []


def say(line: str) -> None:
    """Print past the toolkits' own output: to descriptor 3, which findings/lib.sh opens, or else as usual."""
    try:
        os.write(3, f"{line}\n".encode())
    except OSError:
        print(line, flush=True)


def versions(*packages: str) -> None:
    """Print the installed version of every package."""
    say("versions: " + ", ".join(f"{name} {version(name)}" for name in packages))


def expect(statement: str, seen: object, holds: bool) -> None:
    """Print the statement with what was seen; one that no longer holds makes the script fail."""
    shown = f"{seen:.4g}" if isinstance(seen, float) else str(seen)
    say(f"{'as stated' if holds else 'CHANGED  '}  {statement}: {shown}")
    if not holds:
        _changed.append(statement)


def raised(call, *arguments, **keywords) -> str:
    """The error's type and first line, or an empty string."""
    try:
        call(*arguments, **keywords)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return ""


def distance(seen, reference) -> float:
    """‖seen − reference‖ / ‖reference‖ in float64."""
    seen, reference = seen.double(), reference.double()
    return float((seen - reference).norm() / reference.norm())


def llama(
    folder: str, *, hidden: int = 128, layers: int = 1, dtype: str = "float16", seed: int = 0, **config
) -> Path:
    """Write a random Llama of 256 words and a tokenizer that knows them; return the folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 256,
        "max_position_embeddings": 256,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, "tie_word_embeddings": False, **config}))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(256)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="w0", pad_token="w1", eos_token="w2"
    )
    tokenizer.save_pretrained(folder)
    return Path(folder)


def rows(count: int = 32, length: int = 64, seed: int = 0):
    """Random token ids, 3 to 255, the same in every run: [count, length]."""
    import torch

    return torch.randint(3, 256, (count, length), generator=torch.Generator().manual_seed(seed))


def smollm2(folder: str = "model"):
    """SmolLM2-135M-Instruct from a package, and four windows of 128 tokens of Python's own documentation."""
    from pydoc_data.topics import topics

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    say("versions: " + ", ".join(f"{d.name} {d.version}" for d in distributions(path=[folder])))
    file = next(Path(folder).rglob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = "\n".join(topics[name] for name in sorted(topics))
    tokens = tokenizer(text[:40000], return_tensors="pt").input_ids[0]
    return model, tokens[: 4 * 128].view(4, 128)


@atexit.register
def _verdict() -> None:
    if _changed:
        os._exit(9)  # an exit handler cannot change the status otherwise
