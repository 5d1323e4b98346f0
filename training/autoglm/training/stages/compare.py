"""Stage `compare`: the teacher, the student, the student without the teacher, the pruned student and the student in
INT8 answer the same held-out cases; their sizes and speeds are measured in one run.

A model's scores are kept until its weights or the evaluation set change, so an interrupted run asks only the models
that had not answered yet. Cases are drawn again (it takes seconds), times are always measured again.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from autoglm.common.files import write_atomically
from autoglm.training.data.screens import draw_screen
from autoglm.training.eval.answering import EvalModel, Prediction, predict
from autoglm.training.eval.evaluate import EvalConfig, EvalSet, TaskAccuracy, rows, share_right
from autoglm.training.eval.speed import TOKENS, Times, race, threads
from autoglm.training.measured import Figure, conditions
from autoglm.training.samples import SHARES
from autoglm.vision.models.mobilevit import MobileVit

REPORT = "comparison.json"
TEACHER, STEPS, ALL = "teacher", "agent's steps", "all"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class CompareConfig(EvalConfig):
    """The evaluation set and how speed is measured; recipes/nano.yaml explains each field."""

    rounds: int
    prompts: int
    threads: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that is compared: its folder in the working folder (with fusion and decoder), and how it computes."""

    name: str
    folder: str
    int8: bool = False


ENTRIES = (
    Entry(TEACHER, "teacher"),
    Entry("student", "."),
    Entry("student without the teacher", "plain"),
    Entry("pruned student", "pruned"),
    Entry("student, INT8", ".", int8=True),
)


class Scores(TypedDict):
    """Shares of right answers, by where the question comes from and over all; the rows tell them by task."""

    right: dict[str, float]
    rows: list[TaskAccuracy]


class Sizes(TypedDict):
    """What a model has: weights in bf16 files, in INT8 bytes in memory where a weight is one."""

    decoder_parameters: int
    decoder_bytes: int
    fusion_parameters: int
    fusion_bytes: int


class ModelReport(Scores, Sizes):
    """A model's scores, sizes and times; `faster` is the teacher's time over its own."""

    milliseconds: dict[str, Any]
    faster: dict[str, Any]


class ModelComparison(TypedDict):
    """What was compared, on what, and what came out."""

    seed: int
    limit: int
    cases: int
    rounds: int
    threads: int
    prompt_tokens: list[int]
    conditions: dict[str, Any]
    models: dict[str, ModelReport]


def run(config: CompareConfig, workdir: Path) -> None:
    """Write `workdir`/comparison.json and print its table."""
    eval_set = EvalSet.draw(workdir, config)
    eval_models = {entry.name: _open(entry, workdir) for entry in ENTRIES}
    scores = {entry.name: _kept(entry, eval_set, workdir, eval_models[entry.name]) for entry in ENTRIES}
    asked = [case for case in eval_set.cases if case.source == "screen" and len(case.media) == 1][: config.prompts]
    with threads(config.threads):
        times = race(eval_models, TEACHER, asked, _sight(workdir, config.seed), config.rounds)
    models = {entry.name: _report(entry, workdir, scores, eval_models, times) for entry in ENTRIES}
    composer = eval_models[TEACHER].composer
    lengths = sorted(len(composer.compose(case.messages, case.thinking).token_ids) for case in asked)
    comparison = ModelComparison(
        seed=config.seed, limit=config.limit, cases=len(eval_set.cases) + len(eval_set.steps), rounds=config.rounds,
        threads=config.threads, prompt_tokens=lengths, conditions=conditions(), models=models,
    )  # fmt: skip
    _write(comparison, workdir / REPORT)
    print(table(comparison))


def _write(what: Mapping[str, Any], path: Path) -> None:
    """Write JSON, whole or not at all."""
    write_atomically(path, (json.dumps(what, indent=2, ensure_ascii=False) + "\n").encode())


def _open(entry: Entry, workdir: Path) -> EvalModel:
    if not (workdir / entry.folder / "decoder" / WEIGHTS).exists():
        raise SystemExit(f"{workdir / entry.folder / 'decoder'} is missing; run the stages before compare first")
    return EvalModel.load(workdir / entry.folder, entry.int8)


def _sight(workdir: Path, seed: int) -> Callable[[], Tensor]:
    """Return the vision encoder's work for one screen: from a PNG file to tokens."""
    vision, png = MobileVit.from_pretrained(workdir / "vision"), io.BytesIO()
    draw_screen("heldout", np.random.default_rng(seed), "home").image.save(png, "PNG")
    return lambda: vision.features(vision.preprocess(png.getvalue())[None])


def _kept(entry: Entry, eval_set: EvalSet, workdir: Path, model: EvalModel) -> Scores:
    """Return a model's scores: the kept ones if its weights and the evaluation set have not changed."""
    path = workdir / "compare" / f"{entry.name}.json"
    key = _key(entry, eval_set.config, workdir)
    if path.exists() and (kept := json.loads(path.read_text(encoding="utf-8")))["key"] == key:
        scores: Scores = kept["scores"]
        return scores
    print(entry.name)
    scores = examine(model, eval_set)
    path.parent.mkdir(exist_ok=True)
    _write({"key": key, "scores": scores}, path)
    return scores


def _key(entry: Entry, config: EvalConfig, workdir: Path) -> str:
    digest = hashlib.sha256(f"{config.seed} {config.limit} {entry.int8}".encode())
    own = (workdir / entry.folder / part for part in ("fusion", "decoder"))
    for folder in (*own, workdir / "vision", workdir / "speech"):
        digest.update((folder / WEIGHTS).read_bytes())
    return digest.hexdigest()


def examine(model: EvalModel, eval_set: EvalSet) -> Scores:
    """Ask `model` the cases of `eval_set` that are judged as right or wrong."""
    given = predict(model, [*eval_set.cases, *eval_set.steps])
    asked = given[: len(eval_set.cases)]
    groups: dict[str, list[Prediction]] = {
        source: [one for one in asked if one.case.source == source] for source in SHARES
    }
    groups |= {STEPS: given[len(eval_set.cases) :], ALL: given}
    return Scores(right={name: round(share_right(group), 4) for name, group in groups.items()}, rows=rows(asked))


def _report(
    entry: Entry,
    workdir: Path,
    scores: Mapping[str, Scores],
    eval_models: Mapping[str, EvalModel],
    times: Mapping[str, Times],
) -> ModelReport:
    name, clocked = entry.name, asdict(times[entry.name])
    sizes = _sizes(entry, workdir, eval_models[name])
    return ModelReport(**scores[name], **sizes, milliseconds=clocked["milliseconds"], faster=clocked["faster"])


def _sizes(entry: Entry, workdir: Path, model: EvalModel) -> Sizes:
    folder, decoder = workdir / entry.folder, model.glm.state_dict()
    return Sizes(
        decoder_parameters=sum(weight.numel() for name, weight in decoder.items() if not name.endswith(".scale")),
        decoder_bytes=_bytes(decoder) if entry.int8 else (folder / "decoder" / WEIGHTS).stat().st_size,
        fusion_parameters=sum(weight.numel() for weight in model.fusion.parameters()),
        fusion_bytes=(folder / "fusion" / WEIGHTS).stat().st_size,
    )


def _bytes(weights: Mapping[str, Tensor]) -> int:
    """Return how large these weights would be in a file: INT8 as it is, everything else in bf16."""
    return sum(weight.numel() * (1 if weight.dtype == torch.int8 else 2) for weight in weights.values())


def table(comparison: ModelComparison) -> str:
    """Return the comparison as two Markdown tables, with what it takes to read them."""
    models = comparison["models"]
    teacher = models[TEACHER]
    sources = list(teacher["right"])
    lines = [
        f"| Right answers | {' | '.join(sources)} | of the teacher's |",
        "|---|" + "---|" * (len(sources) + 1),
        *(_scores_line(name, model, teacher) for name, model in models.items()),
        "",
        "| Sizes and speed | parameters | MB | ms a token | × a token | × an answer | × with encoder |",
        "|---|---|---|---|---|---|---|",
        *(_speed_line(name, model) for name, model in models.items()),
        "",
        *_legend(comparison),
    ]
    return "\n".join(lines)


def _scores_line(name: str, model: ModelReport, teacher: ModelReport) -> str:
    shares = " | ".join(f"{share:.3f}" for share in model["right"].values())
    ratio = model["right"][ALL] / teacher["right"][ALL] if teacher["right"][ALL] else float("nan")
    return f"| {name} | {shares} | {ratio:.1%} |"


def _speed_line(name: str, model: ModelReport) -> str:
    times = [model["milliseconds"]["token"], *model["faster"].values()]
    figures = " | ".join(str(Figure(**figure)) for figure in times)
    return f"| {name} | {model['decoder_parameters'] / 1e6:.2f} M | {model['decoder_bytes'] / 1e6:.1f} | {figures} |"


def _legend(comparison: ModelComparison) -> list[str]:
    """Say what the figures of `table` are."""
    machine, fusion = comparison["conditions"]["machine"], comparison["models"][TEACHER]
    prompts, number = comparison["prompt_tokens"], comparison["threads"]
    return [
        f"- {comparison['cases']} held-out cases of seed {comparison['seed']}, the same for every model. "
        f"“{ALL}” is over all of them, and so is the last column.",
        "- Sizes are the decoder's, in bf16; in INT8 the linear layers between embedding and head have 8 bits. "
        f"Each model has a fusion of {fusion['fusion_parameters'] / 1e6:.2f} M parameters "
        f"({fusion['fusion_bytes'] / 1e6:.1f} MB) as well.",
        "- × is the teacher's time over the model's, for one conversation alone, in float32 (INT8: as above), on "
        f"{number} thread{'s' if number > 1 else ''} of {machine['cpu']}. Token: a decoding pass and the choice. "
        f"Answer: {TOKENS} tokens to a written question about one screen, with template, tokenizer, fusion and "
        f"prefill of the prompt ({len(prompts)} prompts of {prompts[0]} to {prompts[-1]} tokens, median "
        f"{median(prompts):.0f}). With encoder: an answer and the vision encoder, from a PNG file on.",
        f"- One run of {comparison['rounds']} rounds, every model in every round: median of the rounds (least–most).",
    ]
