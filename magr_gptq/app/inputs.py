"""What a quantization starts from: checked model files, config, tokenizer, calibration windows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magr_gptq.app.checks import PICKLES, check_model_folder
from magr_gptq.app.text import load_text, overlap_in_words, random_starts, windows_at
from magr_gptq.errors import InputError
from magr_score.windows import TOKENIZER, model_limit, spelled, tokenize

HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")

UNUSED_FILES = ("original/*", "onnx/*", "*.onnx", "*.gguf", "*.h5", "*.msgpack")


@dataclass(frozen=True)
class Windows:
    """Calibration windows, as `random_windows` draws them.

    rows: token ids [samples][seqlen].   overlap: see `overlap_in_words`.
    """

    rows: list[list[int]]
    overlap: str | None


@dataclass(frozen=True)
class Model:
    """A model that is not loaded yet: its checked folder, config and tokenizer."""

    folder: Path
    config: Any
    tokenizer: Any

    def windows(
        self, calibration: str, *, samples: int, seqlen: int, seed: int, cut: str = TOKENIZER
    ) -> Windows:
        """Calibration windows of a text.

        Args:
            calibration: see `load_text`. seqlen: tokens a window; fewer where the model takes no more.
            cut: see `magr_score.windows`.

        Raises:
            InputError: a text that is too short, or a tokenizer of another model.
        """
        beginning, tokens = tokenize(self.tokenizer, load_text(calibration), cut)
        length = min(seqlen, model_limit(self.config))
        starts = random_starts(tokens, samples, length, seed, len(beginning))
        rows = windows_at(starts, tokens, length, beginning)
        check_vocabulary(rows, self.config)
        return Windows(rows, overlap_in_words(starts, length - len(beginning)))

    def beginning(self, cut: str) -> str:
        """What every window begins with, as `spelled` writes it."""
        return spelled(self.tokenizer, tokenize(self.tokenizer, "", cut)[0])


def find_model(model: str, *, allow_pickle: bool = False, trust_remote_code: bool = False) -> str:
    """The absolute path of a model folder whose files pass every check, or a hub id as it is."""
    path = Path(model).expanduser()
    if path.is_dir():
        check_model_folder(path, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
        return str(path.absolute())
    if path.exists() or not HUB_ID.fullmatch(model):
        raise InputError(f"there is no model folder {model}; give a folder, or a hub id such as org/name")
    return model


def local_folder(model: str, *, allow_pickle: bool = False, trust_remote_code: bool = False) -> Path:
    """The checked folder of a model; one from the hub is downloaded, pickles and code left out."""
    folder = Path(model) if Path(model).is_dir() else _download(model, allow_pickle, trust_remote_code)
    check_model_folder(folder, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    return folder


def read_model(folder: Path, trust_remote_code: bool = False) -> Model:
    """The model in a checked folder.

    Raises:
        InputError: what `load_model_files` and `check_all_weights` refuse.
    """
    config, tokenizer = load_model_files(str(folder), trust_remote_code)
    check_all_weights(folder, config)
    return Model(folder, config, tokenizer)


def load_model_files(model: str, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """The model's config and tokenizer, from a folder or the hub.

    Raises:
        InputError: one is absent, or transformers doesn't know such models.
    """
    from transformers import AutoConfig, AutoTokenizer

    where = "the model folder" if Path(model).is_dir() else "no such folder here, and the hub model"
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(f"{where} {model} has no config to load: {first_line(error)}") from error
    try:
        return config, AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{where} {model} has no tokenizer to load: {first_line(error)}") from error


def check_vocabulary(windows: list[list[int]], config: Any) -> None:
    """InputError where the tokenizer makes tokens that the model has no embedding for."""
    largest, size = max(map(max, windows)), config.get_text_config().vocab_size
    if largest >= size:
        raise InputError(
            f"the tokenizer gives token {largest}, and the model knows {size}; "
            "give the tokenizer that belongs to the model"
        )


def check_all_weights(folder: Path, config: Any) -> None:
    """InputError where a weight is missing, which transformers would fill with random numbers.

    Models with code of their own, and those that are more than a language model, are not checked.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    if getattr(config, "auto_map", None) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return
    try:
        # on the device meta only names and shapes are read
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, device_map="meta", output_loading_info=True
        )
    # damaged pickles, and shapes that differ from the config's, end in whatever torch raises
    except Exception as error:
        raise InputError(
            f"the weights in {folder} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        ) from error
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise InputError(
            f"{len(missing)} weights are missing from {folder}, such as {missing[0]}; transformers would "
            "fill them with random numbers: copy or download the model again"
        )


def _download(model: str, allow_pickle: bool, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download

    pickles = () if allow_pickle else PICKLES
    code = () if trust_remote_code else ("*.py",)
    try:
        return Path(snapshot_download(model, ignore_patterns=[*UNUSED_FILES, *pickles, *code]))
    except (OSError, ValueError) as error:
        raise InputError(
            f"there is no folder {model} here, and the hub gave no such model: {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """What an error says, cut to one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
