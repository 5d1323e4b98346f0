"""The training loop of fusion and decoder: Muon on the matrices between layers, AdamW on the rest, warm-up
and a straight way down, bf16 autocast on the device that accelerate finds, a progress bar, TensorBoard logs, and a
checkpoint every two minutes from which a cut run goes on."""

import ctypes
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from autoglm.common.files import replacing

CHECKPOINT_SECONDS = 120
LOG_STEPS = 20
MMAP_THRESHOLD, TRIM_THRESHOLD = (-3, 32 << 20), (-1, 2**31 - 1)  # glibc's mallopt: parameter and value


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """Name of the run (its checkpoint is `name`.pt in the workdir), length, peak rates and seed."""

    name: str
    steps: int
    learning_rate: float
    matrix_rate: float
    seed: int
    warmup: int = 100
    cooldown: float = 0.4
    weight_decay: float = 0.1
    clip: float = 1.0


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run is in what it reads: batches are drawn in pools. `rng` is the generator's state where the pool at
    hand began, `taken` how many of its batches are used."""

    rng: Mapping[str, Any]
    taken: int


class Reads(Protocol):
    """What a run reads: the same batches again from any position."""

    def position(self) -> Position:
        """Return where it is."""

    def seek(self, position: Position) -> None:
        """Go on from there; nothing has been read yet."""


class Loop:
    """A run over `model` that starts at step 0 or where the checkpoint in `workdir` left it.

    A run that was cut reads the batches that it would have read: on one thread it ends with the same weights.
    """

    def __init__(self, model: nn.Module, config: LoopConfig, workdir: Path, reads: Reads) -> None:
        _keep_freed_memory()
        self.accelerator = Accelerator(mixed_precision="bf16")
        self.model, self.config = model.to(self.accelerator.device), config
        self.workdir, self.reads = workdir, reads
        self.path = workdir / f"{config.name}.pt"
        self.optimizers = _optimizers(model, config)
        self.step = 0
        self.position = reads.position()  # behind the last whole step
        if self.path.exists():
            self._restore()

    def run(self, step: Callable[[], tuple[Tensor, dict[str, float]]]) -> None:
        """Minimise what `step` returns (a loss, and figures for the bar) until all steps are done."""
        self.model.train()
        saved, shown = time.monotonic(), dict[str, float]()
        bar = tqdm(total=self.config.steps, initial=self.step, desc=self.config.name, unit="step", mininterval=1)
        log = SummaryWriter(self.workdir / "logs" / self.config.name, purge_step=self.step)
        try:
            while self.step < self.config.steps:
                figures = self._one(step)
                shown = {k: 0.95 * shown.get(k, v) + 0.05 * v for k, v in figures.items()}
                bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items()}, refresh=False)
                bar.update()
                if self.step % LOG_STEPS == 0:
                    for name, value in shown.items():
                        log.add_scalar(name, value, self.step)
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self._save()
                    saved = time.monotonic()
        finally:
            self._save()
            log.close()
            bar.close()

    def _one(self, step: Callable[[], tuple[Tensor, dict[str, float]]]) -> dict[str, float]:
        share = _schedule(self.step, self.config)
        for optimizer, rate in zip(self.optimizers, (self.config.matrix_rate, self.config.learning_rate), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
        with self.accelerator.autocast():
            loss, figures = step()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.position = self.reads.position()
        return figures

    def _save(self) -> None:
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"model": self.model.state_dict(), "optimizers": optimizers, "step": self.step,
                 "rng": self.position.rng, "taken": self.position.taken}  # fmt: skip
        with replacing(self.path) as temporary:
            torch.save(state, temporary)

    def _restore(self) -> None:
        state = torch.load(self.path, map_location=self.accelerator.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.position = Position(state["rng"], state.get("taken", 0))
        self.reads.seek(self.position)
        self.step = state["step"]


def weights(checkpoint: Path) -> dict[str, Tensor]:
    """Return the model's weights from a run's checkpoint; raises SystemExit where the run has not begun."""
    if not checkpoint.exists():
        raise SystemExit(f"{checkpoint} is missing; run --stage {checkpoint.stem} first")
    saved: dict[str, Tensor] = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    return saved


def _keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next step, where it else gives them back and faults them in anew.

    60 steps of the joint stage on two cores took 43 s without this and 36 s with it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another C library has none
        mallopt(*MMAP_THRESHOLD)
        mallopt(*TRIM_THRESHOLD)


def _optimizers(model: nn.Module, config: LoopConfig) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Return Muon for what maps activations to activations and AdamW for tables, the head, norms and vectors.

    Only what Muon takes decays. Muon's steps are scaled to the size of AdamW's (`match_rms_adamw`).
    """
    matrices = [
        layer.weight for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and "lm_head" not in name
    ]
    taken = {id(weight) for weight in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    return (
        torch.optim.Muon(
            matrices, config.matrix_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    )


def _schedule(step: int, config: LoopConfig) -> float:
    """Warm up, stay, and go down in a straight line over the last `cooldown` of the steps."""
    down = (config.steps - step) / (config.cooldown * config.steps)
    return min(1.0, (step + 1) / config.warmup, down)
