"""The training loop of every stage: steps, learning rates, clipping, a progress bar, TensorBoard logs and checkpoints.

A checkpoint is written every two minutes, at the end, and when the run is interrupted (Ctrl-C or an error). The same
run started again resumes from it: it reads the batches that it would have read, and on one thread it ends with the same
weights.
"""

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from autoglm.common.files import replacing
from autoglm.training.precision import optimizer_precision
from autoglm.training.progress import bar

CHECKPOINT_SECONDS = 120
LOG_STEPS = 20
SMOOTHING = 0.95  # of the figures on the progress bar and in the logs
MMAP_THRESHOLD, TRIM_THRESHOLD = (-3, 32 << 20), (-1, 2**31 - 1)  # glibc's mallopt: parameter and value

Figures = Mapping[str, float]
LossAndFigures = tuple[Tensor, Figures]


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """Name of the run (its checkpoint is `name`.pt in the workdir, its logs are in logs/`name`), number of steps,
    largest norm of the gradients, and what every peak learning rate is multiplied by at each step."""

    name: str
    steps: int
    clip: float
    schedule: Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Probe:
    """A measurement of the model after every `every` steps, for the progress bar and the logs."""

    every: int
    measure: Callable[[], Figures]


class Resumable(Protocol):
    """Where batches come from, if that is not a function of the step alone: the same batches again from any state."""

    def state_dict(self) -> dict[str, Any]:
        """Return where the next batch comes from."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there; nothing has been read yet."""


class Loop:
    """A run over `model` that starts at step 0, or at the step of the checkpoint in `workdir`.

    The learning rates that the `optimizers` are made with are the peak rates.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        config: LoopConfig,
        workdir: Path,
        data: Resumable | None = None,
    ) -> None:
        _keep_freed_memory()
        self.model, self.optimizers, self.config = model, optimizers, config
        self.workdir, self.path = workdir, workdir / f"{config.name}.pt"
        self.step = 0
        self._data = data
        self._data_state = data.state_dict() if data else {}  # after the last whole step
        for group in self._groups():
            group["initial_lr"] = group["lr"]
        if self.path.exists():
            self._restore()

    def run(self, step: Callable[[int], LossAndFigures], probe: Probe | None = None) -> Figures:
        """Minimise what `step` returns for each step's number: a scalar loss, and figures for the progress bar.

        Returns the figures as the progress bar shows them at the end.
        """
        self.model.train()
        saved = time.monotonic()
        with _Progress(self.config, self.workdir, self.step) as progress:
            try:
                while self.step < self.config.steps:
                    progress.advance(self._one(step))
                    if probe and self.step % probe.every == 0:
                        progress.report(probe.measure())
                    if time.monotonic() - saved > CHECKPOINT_SECONDS:
                        self._save()
                        saved = time.monotonic()
            finally:
                self._save()
        return progress.shown

    def _one(self, step: Callable[[int], LossAndFigures]) -> Figures:
        factor = self.config.schedule(self.step)
        for group in self._groups():
            group["lr"] = group["initial_lr"] * factor
        loss, figures = step(self.step)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        with optimizer_precision(loss.device):
            for optimizer in self.optimizers:
                optimizer.step()
        self.step += 1
        if self._data:
            self._data_state = self._data.state_dict()
        return figures

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def _save(self) -> None:
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {
            "model": self.model.state_dict(),
            "optimizers": optimizers,
            "step": self.step,
            "data": self._data_state,
        }
        with replacing(self.path) as temporary:
            torch.save(state, temporary)

    def _restore(self) -> None:
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self._data_state = state["step"], state["data"]
        if self._data:
            self._data.load_state_dict(self._data_state)


class _Progress:
    """Shows a run on a progress bar (with its rate and the time left) and logs it for TensorBoard."""

    def __init__(self, config: LoopConfig, workdir: Path, step: int) -> None:
        self._step, self.shown = step, dict[str, float]()
        self._stack = ExitStack()
        self._bar = self._stack.enter_context(bar(config.name, config.steps, "step", step))
        self._log = SummaryWriter(workdir / "logs" / config.name, purge_step=step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._log.close()
        self._stack.close()

    def advance(self, figures: Figures) -> None:
        """Show a step's figures, smoothed."""
        self._step += 1
        for name, value in figures.items():
            self.shown[name] = SMOOTHING * self.shown.get(name, value) + (1 - SMOOTHING) * value
        self._bar.set_postfix({name: f"{value:.3f}" for name, value in self.shown.items()}, refresh=False)
        self._bar.update()
        if self._step % LOG_STEPS == 0:
            self._add(self.shown)

    def report(self, measured: Figures) -> None:
        """Print and log what a probe measured."""
        self._bar.write(f"step {self._step}: {', '.join(f'{name} {value:.3f}' for name, value in measured.items())}")
        self._add(measured)

    def _add(self, figures: Figures) -> None:
        for name, value in figures.items():
            self._log.add_scalar(name, value, self._step)


def weights(checkpoint: Path) -> dict[str, Tensor]:
    """Return a checkpoint's model weights, name to tensor [...]; raises SystemExit if the run has not begun."""
    if not checkpoint.exists():
        raise SystemExit(f"{checkpoint} is missing; run --stage {checkpoint.stem} first")
    saved: dict[str, Tensor] = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    return saved


def _keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next step instead of returning them and faulting them in again.

    60 steps of the joint stage on two cores took 43 s without this and 36 s with it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries do not have it
        mallopt(*MMAP_THRESHOLD)
        mallopt(*TRIM_THRESHOLD)
