"""The training loop that every stage of fusion and decoder shares: AdamW, warm-up and cosine,
bf16 autocast, a progress bar, and a checkpoint every two minutes from which a cut run goes on."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

CHECKPOINT_SECONDS = 120


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """Name of the run (its checkpoint is `name`.pt in the workdir), length, peak rate and seed."""

    name: str
    steps: int
    learning_rate: float
    seed: int
    warmup: int = 100
    cooldown: float = 0.4
    weight_decay: float = 0.02
    clip: float = 1.0


class Loop:
    """A run over `model` that starts at step 0 or where the checkpoint in `workdir` left it."""

    def __init__(self, model: nn.Module, config: LoopConfig, workdir: Path) -> None:
        self.model, self.config = model, config
        self.rng = np.random.default_rng(config.seed)
        self.path = workdir / f"{config.name}.pt"
        self.optimizer = torch.optim.AdamW(_groups(model, config), lr=config.learning_rate, betas=(0.9, 0.95))
        self.step = 0
        if self.path.exists():
            self._restore()

    def run(self, step: Callable[[], tuple[Tensor, dict[str, float]]]) -> None:
        """Minimise what `step` returns (a loss, and figures for the bar) until all steps are done."""
        self.model.train()
        saved, shown = time.monotonic(), dict[str, float]()
        with tqdm(total=self.config.steps, initial=self.step, desc=self.config.name, unit="step", mininterval=1) as bar:
            while self.step < self.config.steps:
                figures = self._one(step)
                shown = {k: 0.95 * shown.get(k, v) + 0.05 * v for k, v in figures.items()}
                bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items()}, refresh=False)
                bar.update()
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self._save()
                    saved = time.monotonic()
        self._save()

    def _one(self, step: Callable[[], tuple[Tensor, dict[str, float]]]) -> dict[str, float]:
        rate = self.config.learning_rate * _schedule(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            loss, figures = step()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        return figures

    def _save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step,
                 "rng": self.rng.bit_generator.state}  # fmt: skip
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.path)

    def _restore(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.bit_generator.state = state["rng"]
        self.step = state["step"]


def _groups(model: nn.Module, config: LoopConfig) -> list[dict[str, object]]:
    """Decay matrices only; norms, biases and vectors are left alone."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]


def _schedule(step: int, config: LoopConfig) -> float:
    """Warm up, stay, and go down in a straight line over the last `cooldown` of the steps."""
    down = (config.steps - step) / (config.cooldown * config.steps)
    return min(1.0, (step + 1) / config.warmup, down)
