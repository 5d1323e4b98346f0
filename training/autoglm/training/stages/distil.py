"""Stages `distil` and `plain`: the student learns the answers and the teacher's probabilities; `plain` is the same run
without the teacher, to know what the teacher is worth.

On the answer's tokens L = α·CE + (1 − α)·KL(teacher ‖ student), both at temperature 1; the losses on attention and
gates are those of the joint stage. Both runs start where `joint` ended and read the same batches.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from autoglm.training.loop import LossAndFigures
from autoglm.training.stages.fusion_decoder import DecoderConfig, FusionDecoder, save
from autoglm.training.stages.joint import AnswerLoss, RunConfig, RunContext, answer_loss, train
from autoglm.training.stages.token_batches import TokenBatch


@dataclass(frozen=True, slots=True)
class DistilConfig(RunConfig):
    """A run with the teacher; recipes/nano.yaml explains each field."""

    alpha: Annotated[float, Field(ge=0, le=1)]


def run(decoder: DecoderConfig, config: DistilConfig, workdir: Path) -> None:
    """Continue from joint.pt with the teacher, and write `workdir`/fusion and `workdir`/decoder."""
    context = RunContext.open(workdir)
    student = context.load_checkpoint("joint.pt", decoder)
    train("distil", student, config, context, teacher_loss(config.alpha, workdir))
    save(student, workdir)


def run_plain(decoder: DecoderConfig, config: DistilConfig, workdir: Path) -> None:
    """Do the same without the teacher, and write `workdir`/plain/fusion and `workdir`/plain/decoder."""
    context = RunContext.open(workdir)
    student = context.load_checkpoint("joint.pt", decoder)
    alone = replace(config, alpha=1.0)
    train("plain", student, alone, context, teacher_loss(alone.alpha, workdir))
    save(student, workdir / "plain")


def teacher_loss(alpha: float, workdir: Path) -> AnswerLoss:
    """Return the loss on answers with the teacher in `workdir`, which α = 1 does not need.

    Raises SystemExit if the teacher is missing.
    """
    if alpha == 1:
        return answer_loss
    if not (workdir / "teacher" / "decoder" / "model.safetensors").exists():
        raise SystemExit(f"{workdir / 'teacher'} is missing; run --stage teacher first")
    return distillation_loss(FusionDecoder.saved(workdir / "teacher"), alpha)


def distillation_loss(teacher: FusionDecoder, alpha: float) -> AnswerLoss:
    """Return the loss on answers with the divergence from `teacher` (knowledge distillation)."""
    teacher.eval().requires_grad_(False)

    def grade(batch: TokenBatch, logits: Tensor) -> LossAndFigures:
        with torch.no_grad():
            wanted, _ = teacher.to(logits.device)(batch)
        answer, kl = cross_entropy(logits.float(), batch.targets), divergence(wanted, logits)
        return mix(answer, kl, alpha), {"answer": answer.item(), "kl": kl.item()}

    return grade


def mix(answer: Tensor, kl: Tensor, alpha: float) -> Tensor:
    """Return α·CE + (1 − α)·KL, a scalar of two scalars."""
    return alpha * answer + (1 - alpha) * kl


def divergence(wanted: Tensor, logits: Tensor) -> Tensor:
    """Return the mean over N tokens of KL(teacher ‖ student), in nats, from the logits [N, vocabulary] of both."""
    return kl_div(
        logits.float().log_softmax(-1), wanted.float().log_softmax(-1), log_target=True, reduction="batchmean"
    )
