"""Recipes: the committed one is read, and a mistake in one is named."""

from pathlib import Path

import pytest
import yaml

from autoglm.training.recipe import NANO, Recipe, RecipeError


def test_the_committed_recipe_makes_the_committed_decoder() -> None:
    decoder = Recipe.read().decoder
    assert (decoder.hidden, decoder.layers) == (256, 4)


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("joint", {"stepz": 3}, "joint.stepz is not a key"),
        ("joint", {"steps": None}, "joint.steps is missing"),
        ("joint", {"steps": "many"}, "joint.steps: "),
        ("joints", {}, "joints is not a key"),
        ("distil", {"alpha": 1.5}, "distil.alpha: "),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, section: str, change: dict[str, object], said: str) -> None:
    raw = yaml.safe_load(NANO.read_text(encoding="utf-8"))
    raw[section] = {k: v for k, v in (raw.get(section, {}) | change).items() if v is not None}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(RecipeError, match=f"{path}: {said}"):
        Recipe.read(path)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml"):
        Recipe.read(tmp_path / "none.yaml")
