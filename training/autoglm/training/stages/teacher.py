"""Stage `teacher`: the jointly trained model with more layers, trained on.

The teacher is grown from the student instead of trained from nothing: it says what the student says at its first
step, so that every step it takes makes it better than the student, and both share tokenizer and embeddings' width.
"""

from dataclasses import dataclass
from pathlib import Path

from autoglm.training.stages.fusion_decoder import DecoderConfig, FusionDecoder, save
from autoglm.training.stages.joint import RunConfig, RunContext, train


@dataclass(frozen=True, slots=True)
class TeacherConfig(RunConfig):
    """A run over a model with `layers` layers; recipes/nano.yaml explains each field."""

    layers: int


def run(decoder: DecoderConfig, config: TeacherConfig, workdir: Path) -> None:
    """Go on from joint.pt with more layers, and write `workdir`/teacher/fusion and `workdir`/teacher/decoder."""
    context = RunContext.open(workdir)
    teacher = grow(context.load_checkpoint("joint.pt", decoder), config.layers, config.seed)
    train("teacher", teacher, config, context)
    save(teacher, workdir / "teacher")


def grow(model: FusionDecoder, layers: int, seed: int = 0) -> FusionDecoder:
    """Return a model of `layers` layers that computes what `model` does, to the bit.

    The old layers keep even distances, and new ones follow each; those add nothing before they are trained.
    Raises ValueError if there would be fewer layers than now.
    """
    config, old = model.decoder.config, model.decoder.model.layers
    if layers < len(old):
        raise ValueError(f"a model of {len(old)} layers does not grow to {layers}")
    sizes = DecoderConfig(config.hidden_size, layers, config.max_position_embeddings)
    grown = FusionDecoder.fresh(sizes, config.vocab_size, seed)
    for number, layer in enumerate(old):
        grown.decoder.model.layers[number * layers // len(old)].load_state_dict(layer.state_dict())
    copy_rest(model, grown)
    return grown


def copy_rest(source: FusionDecoder, target: FusionDecoder) -> None:
    """Give `target` all weights of `source` but those of the decoder's layers."""
    rest = {
        name: weight for name, weight in source.state_dict().items() if not name.startswith("decoder.model.layers.")
    }
    target.load_state_dict(rest, strict=False)
