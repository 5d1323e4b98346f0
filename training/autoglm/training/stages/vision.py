"""The vision stage: trains a MobileViT from nothing on drawn pictures and writes it in HF format."""

import json
import os
import shutil
import time
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import MobileViTConfig, MobileViTModel

from autoglm.training.data.screens import Screen
from autoglm.training.eval.vision import evaluate
from autoglm.training.loop import LOG_STEPS
from autoglm.training.stages.align import save_head
from autoglm.training.stages.vision_data import Pictures, ScreenBatch, screens_of
from autoglm.training.stages.vision_heads import LOUDNESS, Student, loss
from autoglm.vision.models.mobilevit import MobileVit, Preprocessing

CHECKPOINT_SECONDS = 120
ARTEFACT = "vision"
METRICS = "vision-metrics.json"


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """What the stage is run with; recipes/nano.yaml explains each field."""

    seed: int
    steps: int
    batch: int
    sheet_share: float
    learning_rate: float
    weight_decay: float
    warmup: int
    heldout_screens: int


def encoder_config() -> MobileViTConfig:
    """Return the nano encoder's shape: MobileViT-xxs, 224 pixels, 49 tokens of 320."""
    return MobileViTConfig(
        image_size=224,
        hidden_sizes=[64, 80, 96],
        neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320],
        expand_ratio=2.0,
        hidden_dropout_prob=0.0,
    )


def run(config: VisionConfig, workdir: Path) -> None:
    """Train into `workdir`/vision, resuming from the last checkpoint; does nothing when that folder exists."""
    if (workdir / ARTEFACT).exists():
        print(f"vision: done already, see {workdir / ARTEFACT}")
        return
    workdir.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, workdir / "vision.ckpt")
    trainer.train()
    heldout = screens_of("heldout", config.seed, config.heldout_screens)
    _report(trainer.student, heldout, workdir / METRICS)
    save_head(workdir, "image", trainer.student.dense[0].get_parameter("weight"), torch.tensor(LOUDNESS))
    _export(trainer.student.encoder, workdir / ARTEFACT)


class Trainer:
    """The student, its optimizer and the step it has reached."""

    def __init__(self, config: VisionConfig, checkpoint: Path) -> None:
        torch.manual_seed(config.seed)
        self.config, self.checkpoint = config, checkpoint
        self.student = Student(MobileViTModel(encoder_config(), expand_output=True))
        self.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(_groups(self.student, config.weight_decay), lr=config.learning_rate)
        self.step = 0
        if checkpoint.exists():
            self._resume()

    def _resume(self) -> None:
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def save(self) -> None:
        """Write the checkpoint so that a crash leaves the old or the new one, never half of one."""
        draft = self.checkpoint.with_suffix(".tmp")
        state = {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        torch.save(state, draft)
        os.replace(draft, self.checkpoint)

    def train(self) -> None:
        """Run to the last step; saves now and then, at the end, and when interrupted."""
        c = self.config
        pictures = Pictures(c.seed, c.batch, self.step, c.steps, round(c.steps * c.sheet_share))
        loader = DataLoader(pictures, batch_size=None, num_workers=1, prefetch_factor=4)
        bar = tqdm(total=c.steps, initial=self.step, desc="vision", unit="step", mininterval=1.0)
        log = SummaryWriter(self.checkpoint.parent / "logs" / "vision", purge_step=self.step)
        saved, smooth = time.monotonic(), 0.0
        try:
            for batch in loader:
                value = self._update(batch)
                smooth = value if smooth == 0 else 0.97 * smooth + 0.03 * value
                bar.set_postfix(loss=f"{smooth:.3f}", img_s=_rate(bar, c.batch), refresh=False)
                bar.update()
                if self.step % LOG_STEPS == 0:
                    log.add_scalar("loss", smooth, self.step)
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self.save()
                    saved = time.monotonic()
        finally:
            self.save()
            log.close()
            bar.close()

    def _update(self, batch: ScreenBatch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(self.config, self.step)
        images = _augment(batch.images, self.config.seed + self.step)
        with torch.autocast("cpu", torch.bfloat16):
            seen = self.student(images)
        total = loss(seen, batch)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
        self.optimizer.step()
        self.step += 1
        return total.item()


def _groups(student: Student, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices and kernels only; norms and biases go free."""
    parameters = list(student.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _learning_rate(config: VisionConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to 1 % of the peak."""
    progress = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * min(1.0, (step + 1) / config.warmup) * (0.505 + 0.495 * cos(pi * progress))


def _augment(images: Tensor, seed: int) -> Tensor:
    """Return float images in [0, 1] with a little gain, shift and noise, channels last."""
    dice = torch.Generator().manual_seed(seed)
    gain = 1 + 0.24 * (torch.rand(len(images), 1, 1, 1, generator=dice) - 0.5)
    shift = 0.1 * (torch.rand(len(images), 1, 1, 1, generator=dice) - 0.5)
    noise = 0.02 * torch.randn(images.shape, generator=dice)
    pixels = images.float() / 255 * gain + shift + noise
    return pixels.clamp(0, 1).contiguous(memory_format=torch.channels_last)


def _rate(bar: "tqdm[Any]", batch: int) -> str:
    rate = bar.format_dict["rate"]
    return f"{rate * batch:.0f}" if rate else "?"


def _report(student: Student, screens: list[Screen], path: Path) -> None:
    """Print and save what the encoder sees on held-out screens."""
    metrics = evaluate(student, screens)
    print("\n".join(f"{question:<14}{value:8.3f}" for question, value in metrics.items()))
    path.write_text(json.dumps(metrics, indent=2) + "\n")


def _export(encoder: MobileViTModel, folder: Path) -> None:
    """Write the encoder in HF format; the folder appears only when it is complete."""
    draft = folder.with_suffix(".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    MobileVit(encoder.to(memory_format=torch.contiguous_format), Preprocessing()).save_pretrained(draft)
    os.replace(draft, folder)
