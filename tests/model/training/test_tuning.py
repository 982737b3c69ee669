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


def begun(folder: Path, name: str, generator: torch.Generator, **changes: Any) -> Adapter:
    """An adapter in a folder, with values in all of its factors."""
    made = tuned(folder, **changes)
    with torch.no_grad():
        for parameter in made.parameters.values():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    adapter = made.finish()
    assert adapter is not None
    adapter.save(folder / name, dtype=torch.float32)
    return adapter


def test_what_is_kept_is_the_mean_of_the_changes_of_several_runs(tmp_path: Path) -> None:
    """Of products of factors, not of factors; figures are those of the mean."""
    generator = torch.Generator().manual_seed(5)
    first, second = (begun(tmp_path, name, generator) for name in ("first", "second"))
    third = tuned(tmp_path, start=tmp_path / "first", averaged_with=(tmp_path / "second",))
    kept = third.finish()
    assert kept is not None
    for path, up in kept.up.items():
        each = [one.up[path] @ one.down[path] for one in (first, second)]
        assert up.shape[1] == 16
        torch.testing.assert_close(up @ kept.down[path], (each[0] + each[1]) / 2)
    for name, tensor in third.head.state_dict().items():
        torch.testing.assert_close(tensor, (first.head[name] + second.head[name]) / 2)
    given = third.model.encoder.blocks[0].attention.project_in.adapters
    torch.testing.assert_close(given.up[0], kept.up["blocks.0.attention.project_in"])


def test_only_runs_of_the_same_kind_are_averaged(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    begun(tmp_path, "first", generator)
    begun(tmp_path, "narrow", generator, linears=("*.attention.*",))
    with pytest.raises(ValueError, match=r"tuning\.averaged_with: .* is for classify bad, good"):
        tuned(tmp_path, labels=("good", "bad"), averaged_with=(tmp_path / "first",))
    with pytest.raises(ValueError, match="changes other Linears"):
        tuned(tmp_path, averaged_with=(tmp_path / "narrow",)).finish()


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
