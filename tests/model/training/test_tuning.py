"""What is trained: the Linears that the recipe names, from nothing or from an adapter that is there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import training_house

from model.adapters import Adapter
from model.training.recipe import Recipe
from model.training.tuning import TunedModel


def tuned(folder: Path, *, labels: tuple[str, ...] = ("bad", "good"), **changes: Any) -> TunedModel:
    recipe = training_house.recipe("classification", folder)
    return TunedModel(
        training_house.small(folder / "model"), with_tuning(recipe, **changes), task="classify", labels=labels
    )


def with_tuning(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, tuning=replace(recipe.tuning, **changes))


def test_only_what_is_named_is_trained(tmp_path: Path) -> None:
    made = tuned(tmp_path, linears=("blocks.*.attention.*",))
    names = {name for name in made.parameters if not name.startswith("head.")}
    assert names == {
        f"blocks.{i}.attention.{name}.adapters.{factor}"
        for i in range(3)
        for name in ("project_in", "project_out")
        for factor in ("down", "up")
    }
    trained = {id(parameter) for parameter in made.parameters.values()}
    assert all(one.requires_grad == (id(one) in trained) for one in made.model.parameters())
    with pytest.raises(ValueError, match=r"tuning\.linears: none of .* is blocks\.9\.\*"):
        tuned(tmp_path, linears=("blocks.9.*",))


def test_an_adapter_is_gone_on_from(tmp_path: Path) -> None:
    first = tuned(tmp_path)
    with torch.no_grad():
        for parameter in first.parameters.values():
            parameter += 0.01
    adapter = first.finish()
    assert adapter is not None
    adapter.save(tmp_path / "first", dtype=torch.float32)
    second = tuned(tmp_path, start=tmp_path / "first")
    assert all(torch.equal(first.parameters[name], one) for name, one in second.parameters.items())


def test_what_is_kept_lies_between_the_start_and_what_was_learnt(tmp_path: Path) -> None:
    first = tuned(tmp_path).finish()
    assert first is not None
    first.save(tmp_path / "first", dtype=torch.float32)
    second = tuned(tmp_path, start=tmp_path / "first", start_share=0.25)
    with torch.no_grad():
        for parameter in second.parameters.values():
            parameter += 1.0
    kept = second.finish()
    assert kept is not None
    for before, after in ((first.up, kept.up), (first.down, kept.down), (first.head, kept.head)):
        assert before.keys() == after.keys()
        for name, tensor in after.items():
            torch.testing.assert_close(tensor, before[name] + 0.75)
    with pytest.raises(ValueError, match=r"a share of tuning\.start, which is missing"):
        tuned(tmp_path, start_share=0.25)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rank": 4}, "has other factors"),
        ({"method": "full"}, "has other factors"),
        ({"linears": ("*.attention.*",)}, "has other factors"),
        ({"labels": ("good", "bad")}, "is for classify bad, good"),
    ],
)
def test_an_adapter_that_does_something_else_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    adapter = tuned(tmp_path).finish()
    assert isinstance(adapter, Adapter)
    adapter.save(tmp_path / "first", dtype=torch.float32)
    with pytest.raises(ValueError, match=reason):
        tuned(tmp_path, start=tmp_path / "first", **changes)
