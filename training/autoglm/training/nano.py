"""`autoglm train nano`: from nothing to the committed bundle, stage by stage.

Every stage leaves its result in the working folder. The encoders and the features are not made again while theirs is
there; an interrupted run resumes from its checkpoint. Deleting a result and its checkpoint makes it again.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from autoglm.common.bundle import ADAPTERS, DEFAULT_BUNDLE, Bundle, default_bundle, write_manifest
from autoglm.common.modalities import PARTS
from autoglm.training.eval import evaluate
from autoglm.training.recipe import Recipe
from autoglm.training.stages import (
    compare,
    distil,
    features,
    fusion_decoder,
    joint,
    persona,
    prune,
    speech,
    sweep,
    teacher,
    vision,
)

STAGES = (
    "speech", "vision", "features", "align", "joint", "teacher", "distil", "plain", "prune", "compare", "persona",
    "evaluate", "export",
)  # fmt: skip
ASIDE = ("sweep",)  # run only when asked for


def main(workdir: Path, stage: str | None = None, out: Path | None = None, recipe: Path | None = None) -> None:
    """Run every stage, or `stage` alone, in `workdir`; the bundle goes to `out` (default: the packaged place).

    Raises SystemExit for a stage that does not exist, RecipeError for a recipe that cannot be read.
    """
    if stage is not None and stage not in (*STAGES, *ASIDE):
        raise SystemExit(f"no stage {stage!r}; the stages are {', '.join((*STAGES, *ASIDE))}")
    runners = _runners(Recipe.read(recipe), workdir, out or default_bundle())
    workdir.mkdir(parents=True, exist_ok=True)
    for name in STAGES if stage is None else (stage,):
        runners[name]()


def _runners(recipe: Recipe, workdir: Path, out: Path) -> dict[str, Callable[[], None]]:
    """Return what each stage does."""

    def judge() -> None:
        report = evaluate.evaluate(workdir, recipe.evaluate)
        evaluate.write(report, workdir / evaluate.REPORT)
        print(evaluate.table(report))

    return {
        "speech": lambda: speech.run(recipe.speech, workdir),
        "vision": lambda: vision.run(recipe.vision, workdir),
        "features": lambda: features.run(recipe.features, workdir),
        "align": lambda: joint.run_align(recipe.decoder, recipe.align, workdir),
        "joint": lambda: joint.run(recipe.decoder, recipe.joint, workdir),
        "teacher": lambda: teacher.run(recipe.decoder, recipe.teacher, workdir),
        "distil": lambda: distil.run(recipe.decoder, recipe.distil, workdir),
        "plain": lambda: distil.run_plain(recipe.decoder, recipe.distil, workdir),
        "sweep": lambda: sweep.run(recipe.decoder, recipe.sweep, recipe.distil, workdir),
        "prune": lambda: prune.run(recipe.decoder, recipe.prune, workdir),
        "persona": lambda: persona.run(recipe.persona, workdir),
        "compare": lambda: compare.run(recipe.compare, workdir),
        "evaluate": judge,
        "export": lambda: print(f"exported to {export(workdir, out).root}"),
    }


def export(workdir: Path, out: Path) -> Bundle:
    """Put the trained parts into `out` with their manifest and model card, replacing what was there.

    The old bundle goes only when the new one is whole.
    """
    draft = out.with_name(out.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    for part in PARTS:
        files = shutil.ignore_patterns("metrics.json")
        shutil.copytree(workdir / part, draft / part, ignore=files)
    if (workdir / ADAPTERS).is_dir():
        shutil.copytree(workdir / ADAPTERS, draft / ADAPTERS)
    shutil.copy(workdir / evaluate.REPORT, draft)
    (draft / "README.md").write_text(card(workdir), encoding="utf-8")
    write_manifest(draft, DEFAULT_BUNDLE, "gcma").verify()
    shutil.rmtree(out, ignore_errors=True)
    draft.rename(out)
    return Bundle.open(out)


def card(workdir: Path) -> str:
    """Return the model card, with the comparison where there is one."""
    report = json.loads((workdir / evaluate.REPORT).read_text(encoding="utf-8"))
    compared = ""
    if (path := workdir / compare.REPORT).exists():
        compared = COMPARED.replace("{table}", compare.table(json.loads(path.read_text(encoding="utf-8"))))
    filled = CARD.replace("{table}", evaluate.table(report)).replace("{compared}", compared)
    return filled.replace("{limit}", str(fusion_decoder.MAX_NEW_TOKENS))


CARD = """---
license: apache-2.0
language: [zh, en]
---
# autoglm-phone-nano

A phone assistant small enough to commit: it sees a drawn phone screen, hears a synthetic voice and reads text, in
Chinese and English, and answers with text or with one phone action. It exists so that the mesh tells the truth on
real input with no download; it is not a product.

| Part | What | From |
|---|---|---|
| vision | MobileViT-xxs, 224 × 224 → 49 tokens of 320 | nothing |
| speech | Whisper-tiny's encoder, fine-tuned, with a CTC head on characters | openai/whisper-tiny.en (MIT) |
| fusion | GCMA at d = 512, 8 heads | nothing |
| decoder | GLM, 4 layers of 256 | nothing |

`autoglm train nano` makes it on two CPU cores from data that it generates itself: drawn screens and espeak-ng voices.
Vision sees 96 000 pictures (46 minutes on one core), speech hears 67 hours (58 minutes on the other), fusion and
decoder read some 28 million tokens to align (80 minutes on both) and some 22 million of everything (67 minutes). The
seeds are fixed, the number of threads is not: running the command again gives a bundle of this kind, not the same
bytes. These very weights were made in more than one sitting: both encoders went on from the end of a run of half the
length, and `align` read features of the encoders of before, 7 000 screens and as many clips, without transcripts,
noise, copies or agents' steps. The teacher (34 layers) then read 1.2 million tokens (49 minutes), and the student
4.9 million with it (about 50), of 12 000 screens and 12 000 clips drawn anew.

## On held-out cases

Held out are layouts, phone sizes, sentence wordings, voices and sums that training never draws. Greedy decoding; an
answer is right when it is the expected text, a tap when its point lies inside the element's box.

{table}
{compared}
## Another character

`adapters/terse` is a LoRA adapter (rank 16, PEFT's format) that keeps small talk short and leaves the rest as it is:
ask the model `autoglm-phone-nano:terse`.

## Where an answer ends

`eos_token_id` in `decoder/generation_config.json` has the ends of a turn and `</answer>`, which closes an action. That
mark is not printed unless `include_stop_str_in_output` is set, so an order to repeat a text with `</answer>` in it ends
there. `max_new_tokens` is {limit}, for requests that set no `max_tokens`: right answers have up to some 50 tokens, but
free JSON, and free text in an argument of a function, often repeats itself until the context is full.

## What it cannot do

Real photographs and real screenshots, real voices, open-domain talk, reading text on a screen, anything outside its
24 apps, 8 colours and 8 settings. It will answer all the same, and it will be wrong.
"""

COMPARED = """
## Teacher and student

The decoder here is the student, trained with a teacher: the same model with more layers. The teacher and the pruned
student are not in the bundle; `autoglm train nano` makes them too.

{table}
"""
