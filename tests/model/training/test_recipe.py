"""Recipes: the carried ones are read, and a wrong key is refused with its name."""

from pathlib import Path

import pytest

from model.training.recipe import Recipe

RECIPES = Path(__file__).parents[3] / "model/training/recipes"
TEXT = (RECIPES / "sentiment.toml").read_text("utf-8")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_carried_recipes(path: Path) -> None:
    recipe = Recipe.read(path)
    assert recipe.name == path.stem.removesuffix("-first")
    if not path.stem.endswith("-first"):
        assert recipe.output == RECIPES / "../adapters" / path.stem


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("seed = 7", "", "missing: seed"),
        ("seed = 7", "seed = 7\ncolour = 1", "unknown: colour"),
        ("rank = 32", "rnak = 32", r"missing: tuning\.rank; unknown: tuning\.rnak"),
        ('method = "lora"', 'method = "magic"', r"tuning\.method is 'magic', not one of lora, full"),
        ("rank = 32", "rank = true", r"tuning\.rank is True"),
        ("\nratio = 0.1", "\nratio = '0.1'", r"validation\.ratio is '0\.1'"),
        ("seed = 7", "seed =", "not a recipe"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, old: str, new: str, reason: str) -> None:
    assert old in TEXT
    (tmp_path / "recipe.toml").write_text(TEXT.replace(old, new, 1))
    with pytest.raises(ValueError, match=reason):
        Recipe.read(tmp_path / "recipe.toml")
