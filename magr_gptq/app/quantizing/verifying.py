"""Whether a saved checkpoint loads: each loader of its engine is tried in a process without magr_gptq."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from magr_gptq.app.processes import EngineError, Listener
from magr_gptq.app.quantizing.engines import ENGINES
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.scoring import verify
from magr_gptq.errors import InputError

# of the checkpoint: predictions take the model in float32, up to sixteen times this
SMALL_BYTES = 2**30
# ‖L − R‖/‖R‖ of logits: kernels in 16 bits are at 0.01, a wrong zero point or a random tensor near 1
LARGEST_DIFFERENCE = 0.05


@dataclass(frozen=True)
class Loaded:
    """What a loader made of a checkpoint.

    missing: names of tensors that it filled with something else than the files'. difference: of its
    predictions, see `magr_score.verify`; None where they were not compared. strange: of the tensors that the
    model's own class has, how many the files name otherwise. error: what it raised.
    """

    loader: str
    missing: tuple[str, ...] = ()
    difference: float | None = None
    strange: int = 0
    error: str | None = None

    @property
    def right(self) -> bool:
        """Whether it has every tensor, and predicts what the file's weights do, as far as that was asked."""
        return not (self.error or self.missing or (self.difference or 0) > LARGEST_DIFFERENCE)

    @property
    def says(self) -> str:
        """The same in words."""
        if self.error:
            return f"it failed: {self.error}"
        if self.missing:
            return f"{len(self.missing)} tensors are not the file's, such as {self.missing[0]}"
        if self.difference is None:
            unsaid = f" ({self.strange} have other names there, so predictions were not compared)"
            return f"loads every tensor{unsaid if self.strange else ''}"
        if not self.right:
            return f"its logits are {self.difference:.0%} off what the file's weights give"
        return f"loads every tensor; its logits are {self.difference:.1g} off what the file's weights give"


def try_loaders(job: Job, predict: bool | None, log: Path, listen: Listener) -> list[Loaded]:
    """Load the checkpoint in `job.out` by each loader of its engine.

    predict: compare predictions, too; None does where the checkpoint is small. False tries nothing, and a
    model's own code is never run here.
    """
    if predict is False or job.trust_remote_code:
        return []
    files = Path(job.out).glob("*.safetensors")
    compared = predict or sum(file.stat().st_size for file in files) <= SMALL_BYTES
    found = []
    for loader in ENGINES[job.engine].loaders:
        listen({"text": f"loading the checkpoint by {loader}"})
        found.append(_try(job.out, loader, compared, log))
    return found


def _try(folder: str, loader: str, predict: bool, log: Path) -> Loaded:
    try:
        return Loaded(loader, **verify(folder, engine=loader, predict=predict, log=log))
    except (EngineError, InputError) as error:
        return Loaded(loader, error=str(error).partition(" (all that was printed")[0])


def require_loader(loaded: Sequence[Loaded], out: str) -> None:
    """EngineError where the engine's own loader, the first that was tried, does not load the checkpoint."""
    if loaded and not loaded[0].right:
        raise EngineError(
            f"{loaded[0].loader} does not load what was saved: {loaded[0].says}. The checkpoint is in {out}; "
            "don't use it"
        )
