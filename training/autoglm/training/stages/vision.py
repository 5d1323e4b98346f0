"""The vision stage: trains a MobileViT from nothing on drawn pictures and writes it in HF format."""

import json
import os
import shutil
from dataclasses import dataclass
from functools import partial
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import MobileViTConfig, MobileViTModel

from autoglm.training.data.screens import Screen
from autoglm.training.eval.vision import evaluate
from autoglm.training.loop import Loop, LoopConfig, LossAndFigures
from autoglm.training.precision import autocast
from autoglm.training.stages.align import save_head
from autoglm.training.stages.vision_data import Pictures, screens_of
from autoglm.training.stages.vision_heads import LOUDNESS, Student, loss
from autoglm.vision.models.mobilevit import MobileVit, Preprocessing

ARTEFACT = "vision"
METRICS = "vision-metrics.json"
CLIP = 5.0


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
    """Train into `workdir`/vision, from the checkpoint if there is one; does nothing if that folder exists."""
    if (workdir / ARTEFACT).exists():
        print(f"vision: done already, see {workdir / ARTEFACT}")
        return
    workdir.mkdir(parents=True, exist_ok=True)
    student = train(config, workdir)
    heldout = screens_of("heldout", config.seed, config.heldout_screens)
    _report(student, heldout, workdir / METRICS)
    save_head(workdir, "image", student.dense[0].get_parameter("weight"), torch.tensor(LOUDNESS))
    _export(student.encoder, workdir / ARTEFACT)


def train(config: VisionConfig, workdir: Path) -> Student:
    """Return the trained encoder with its heads."""
    torch.manual_seed(config.seed)
    student = Student(MobileViTModel(encoder_config(), expand_output=True))
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(_groups(student, config.weight_decay), lr=config.learning_rate)
    loop = Loop(student, [optimizer], LoopConfig("vision", config.steps, CLIP, partial(_schedule, config)), workdir)
    pictures = Pictures(config.seed, config.batch, loop.step, config.steps, round(config.steps * config.sheet_share))
    batches = iter(DataLoader(pictures, batch_size=None, num_workers=1, prefetch_factor=4))

    def step(number: int) -> LossAndFigures:
        batch = next(batches)
        images = _augment(batch.images, config.seed + number)
        with autocast("cpu"):
            seen = student(images)
        total = loss(seen, batch)
        return total, {"loss": total.item()}

    loop.run(step)
    return student


def _groups(student: Student, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices and kernels only; norms and biases go free."""
    parameters = list(student.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _schedule(config: VisionConfig, step: int) -> float:
    """Return the factor of the peak rate: a straight warm-up, then a cosine down to 1 %."""
    progress = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
    return min(1.0, (step + 1) / config.warmup) * (0.505 + 0.495 * cos(pi * progress))


def _augment(images: Tensor, seed: int) -> Tensor:
    """Return float images in [0, 1] with a little gain, shift and noise, channels last."""
    dice = torch.Generator().manual_seed(seed)
    gain = 1 + 0.24 * (torch.rand(len(images), 1, 1, 1, generator=dice) - 0.5)
    shift = 0.1 * (torch.rand(len(images), 1, 1, 1, generator=dice) - 0.5)
    noise = 0.02 * torch.randn(images.shape, generator=dice)
    pixels = images.float() / 255 * gain + shift + noise
    return pixels.clamp(0, 1).contiguous(memory_format=torch.channels_last)


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
