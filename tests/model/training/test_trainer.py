"""Training: a falling loss on a small set, the same result from the same seed, an honest split."""

from pathlib import Path

import small_models
import torch

from model.adapters import Adapter
from model.checkpoints.registry import load, open_checkpoint
from model.encoder import EncoderModel
from model.training.recipe import Recipe
from model.training.sentiment_data import RatedSentence, split
from model.training.trainer import accuracy, train_classifier

RECIPES = Path(__file__).parents[3] / "model/training/recipes"


def sentences(count: int, seed: int) -> list[RatedSentence]:
    """Words 10 to 14 are bad, 15 to 19 good; the rest of the sentence says nothing."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        filler = torch.randint(90, 96, (3,), generator=generator)
        word = int(torch.randint(10, 20, (1,), generator=generator))
        made.append(RatedSentence("made", 2.0 if word >= 15 else -2.0, [0, word, *filler.tolist()]))
    return made


def trained(folder: Path, **changes: object) -> tuple[EncoderModel, Adapter, torch.nn.Module, list[float]]:
    small_models.save(small_models.bert(), folder)
    model = load(open_checkpoint(folder), device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(model, EncoderModel)
    recipe = Recipe.read(RECIPES / "sentiment.toml")
    settings = {name: getattr(recipe, name) for name in Recipe.__slots__}
    recipe = Recipe(**{**settings, "rank": 8, "num_epochs": 12, "batch_tokens": 128, "dropout": 0.0, **changes})
    adapter, head, losses = train_classifier(model, recipe, sentences(300, 1))
    return model, adapter, head, losses


def test_the_loss_falls_and_the_rule_is_learnt(tmp_path: Path) -> None:
    model, _, head, losses = trained(tmp_path)
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    figures = accuracy(model, head, sentences(200, 2), batch_tokens=512)
    assert figures.num_sentences == 200
    assert figures.overall > 0.85


def test_the_same_seed_gives_the_same_adapter(tmp_path: Path) -> None:
    _, first, _, _ = trained(tmp_path / "a", num_epochs=1)
    _, second, _, _ = trained(tmp_path / "b", num_epochs=1)
    assert all(torch.equal(first.up[path], second.up[path]) for path in first.up)


def test_the_split_is_fixed_and_apart() -> None:
    everything = sentences(100, 3)
    training, validation = split(everything, 0.1, seed=7)
    assert len(validation) == 10
    assert len(training) == 90
    assert (training, validation) == split(everything, 0.1, seed=7)
    assert not {id(s) for s in training} & {id(s) for s in validation}
