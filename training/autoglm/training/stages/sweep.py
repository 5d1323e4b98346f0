"""Stage `sweep`: how much of the loss should be the teacher's? Short runs of `distil` for several α, from one start
and over the same batches, judged on one small evaluation set. It runs only with `--stage sweep`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from autoglm.training.eval.answering import EvalModel, predict
from autoglm.training.eval.evaluate import EvalConfig, EvalSet, share_right
from autoglm.training.samples import Case, Sampler
from autoglm.training.stages.distil import DistilConfig, teacher_loss
from autoglm.training.stages.fusion_decoder import DecoderConfig, FusionDecoder, save
from autoglm.training.stages.joint import RunContext, train
from autoglm.training.stages.token_batches import TokenBatches

TABLE = "sweep.md"
TOKENS = 4096  # in a batch of held-out cases


@dataclass(frozen=True, slots=True)
class SweepConfig(EvalConfig):
    """Which α, how many steps each, and the evaluation set; recipes/nano.yaml explains each field."""

    alphas: tuple[float, ...]
    steps: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run: the mean loss of an answer's token on held-out cases, and the share of right answers."""

    name: str
    loss: float
    right: float


def run(decoder: DecoderConfig, config: SweepConfig, distil: DistilConfig, workdir: Path) -> None:
    """Write the table of outcomes to `workdir`/sweep.md and print it; the runs' models go to `workdir`/sweep."""
    context, eval_set = RunContext.open(workdir), EvalSet.draw(workdir, config)
    outcomes = [judge("before", context.load_checkpoint("joint.pt", decoder), context, eval_set.cases)]
    for alpha in config.alphas:
        student = context.load_checkpoint("joint.pt", decoder)
        short = replace(distil, alpha=alpha, steps=config.steps)
        train(f"sweep-{alpha:g}", student, short, context, teacher_loss(alpha, workdir))
        outcomes.append(judge(f"{alpha:g}", student, context, eval_set.cases))
    written = table(outcomes, len(eval_set.cases), config.steps)
    (workdir / TABLE).write_text(written + "\n", encoding="utf-8")
    print(written)


def judge(name: str, student: FusionDecoder, context: RunContext, cases: Sequence[Case]) -> Outcome:
    """Evaluate `student`, and keep it in the context's folder, in sweep/`name`."""
    loss = held_out_loss(student, context, cases)
    folder = context.workdir / "sweep" / name
    save(student, folder)
    return Outcome(name, loss, share_right(predict(EvalModel.load(folder), cases)))


@torch.inference_mode()
def held_out_loss(student: FusionDecoder, context: RunContext, cases: Sequence[Case]) -> float:
    """Return the mean cross-entropy of an answer's token, in nats."""
    student.to("cpu").eval()
    total, tokens = 0.0, 0
    for batch in TokenBatches(context.composer, Sampler(context.store, 0), TOKENS).of(cases):
        logits, _ = student(batch)
        total += float(cross_entropy(logits.float(), batch.targets, reduction="sum"))
        tokens += len(batch.targets)
    return total / tokens


def table(outcomes: Sequence[Outcome], cases: int, steps: int) -> str:
    """Return the outcomes as a Markdown table."""
    lines = ["| α | held-out loss | right |", "|---|---|---|"]
    lines += [f"| {outcome.name} | {outcome.loss:.4f} | {outcome.right:.3f} |" for outcome in outcomes]
    return "\n".join([*lines, "", f"{steps} steps each; {cases} held-out cases."])
