"""A run in one YAML file, a section for each stage; `recipes/nano.yaml` is the committed bundle's."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import TypeAdapter, ValidationError

from autoglm.training.eval.evaluate import EvalConfig
from autoglm.training.stages.compare import CompareConfig
from autoglm.training.stages.distil import DistilConfig
from autoglm.training.stages.features import FeaturesConfig
from autoglm.training.stages.fusion_decoder import DecoderConfig
from autoglm.training.stages.joint import RunConfig
from autoglm.training.stages.persona import PersonaConfig
from autoglm.training.stages.prune import PruneConfig
from autoglm.training.stages.speech import SpeechConfig
from autoglm.training.stages.sweep import SweepConfig
from autoglm.training.stages.teacher import TeacherConfig
from autoglm.training.stages.vision import VisionConfig

NANO = Path(__file__).parent / "recipes" / "nano.yaml"


class RecipeError(ValueError):
    """A recipe cannot be read; the message names the file and what is wrong in it."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What every stage of a run is given."""

    speech: SpeechConfig
    vision: VisionConfig
    features: FeaturesConfig
    decoder: DecoderConfig
    align: RunConfig
    joint: RunConfig
    teacher: TeacherConfig
    distil: DistilConfig
    sweep: SweepConfig
    prune: PruneConfig
    compare: CompareConfig
    persona: PersonaConfig
    evaluate: EvalConfig

    @classmethod
    def read(cls, path: Path | None = None) -> Self:
        """Read a recipe (default: nano's); raises RecipeError for unknown, missing or ill-typed keys."""
        where = path or NANO
        try:
            raw = yaml.safe_load(where.read_text(encoding="utf-8"))
            _same_keys("", raw, cls)
            for section in fields(cls):
                _same_keys(f"{section.name}.", raw[section.name], section.type)
            return TypeAdapter(cls).validate_python(raw)
        except ValidationError as error:
            first = error.errors()[0]
            raise RecipeError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        except OSError as error:
            raise RecipeError(f"{where} cannot be read ({error.strerror}): name a recipe with --recipe") from error
        except (ValueError, yaml.YAMLError) as error:
            raise RecipeError(f"{where}: {error}") from error


def _same_keys(prefix: str, given: Any, wanted: Any) -> None:
    """Raise ValueError unless `given` is a mapping with just the fields of the dataclass `wanted`."""
    names = {field.name for field in fields(wanted)}
    keys = set(given) if isinstance(given, dict) else set()
    if odd := sorted(map(str, keys ^ names)):
        raise ValueError(f"{prefix}{odd[0]} is {'not a key' if odd[0] in keys else 'missing'}")
