"""A model's files, config and tokenizer, and what can be known from them before it is loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from magr_gptq.app.quantizing.checks import PICKLES, check_model_folder
from magr_gptq.app.quantizing.job import Job
from magr_gptq.errors import InputError

UNUSED_FILES = ("original/*", "onnx/*", "*.onnx", "*.gguf", "*.h5", "*.msgpack")


def local_folder(job: Job) -> Path:
    """The checked folder of the job's model; one from the hub is downloaded, pickles and code left out."""
    folder = Path(job.model) if Path(job.model).is_dir() else _download(job)
    check_model_folder(folder, allow_pickle=job.allow_pickle, trust_remote_code=job.trust_remote_code)
    return folder


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


def model_limit(config: Any) -> int:
    """The longest context that the model's config allows."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize)


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


def _download(job: Job) -> Path:
    from huggingface_hub import snapshot_download

    pickles = () if job.allow_pickle else PICKLES
    code = () if job.trust_remote_code else ("*.py",)
    try:
        return Path(snapshot_download(job.model, ignore_patterns=[*UNUSED_FILES, *pickles, *code]))
    except (OSError, ValueError) as error:
        raise InputError(
            f"there is no folder {job.model} here, and the hub gave no such model: {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """What an error says, cut to one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
