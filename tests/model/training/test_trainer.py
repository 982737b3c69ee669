"""The loop: a run that was cut goes on bit for bit, the best weights are kept, the rate takes its course."""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import training_house

from model.checkpoints.registry import open_checkpoint
from model.training.__main__ import split
from model.training.batches import cut
from model.training.classification import Classification, ClassificationOptions, Sentence
from model.training.recipe import Optimization, Validation
from model.training.trainer import Trainer, course

SETTINGS: dict[str, Any] = {"num_epochs": 2, "dropout": 0.1, "num_accumulated": 2, "layer_decay": 0.9}


def sentences(count: int, seed: int) -> list[Sentence]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        filler = torch.randint(20, 90, (int(torch.randint(2, 6, (1,), generator=generator)),), generator=generator)
        word = int(torch.randint(10, 20, (1,), generator=generator))
        made.append(Sentence([1, word, *filler.tolist(), 2], (1.0, 0.0) if word < 15 else (0.0, 1.0)))
    return made


def trainer(folder: Path, validation: Validation | None = None, **changes: Any) -> Trainer[Any]:
    model = training_house.small(folder / "model")
    options = ClassificationOptions(labels=("bad", "good"), max_input_tokens=64, hidden_ratio=0.1)
    objective = Classification(options, open_checkpoint(folder / "model").tokenizer(), batch_tokens=512)
    recipe = training_house.recipe("classification", folder, validation=validation, **{**SETTINGS, **changes})
    return training_house.trainer(model, objective, recipe, sentences(200, 1), sentences(60, 2))


def weights(made: Trainer[Any]) -> Iterator[torch.Tensor]:
    return iter(made.tuned.parameters.values())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_that_was_cut_goes_on_as_if_it_was_not(tmp_path: Path, precision: str) -> None:
    whole = trainer(tmp_path, Validation(every_steps=5, figure="accuracy"), precision=precision)
    whole.run()
    state = tmp_path / "run.state"
    first = trainer(tmp_path, Validation(every_steps=5, figure="accuracy"), precision=precision)
    first.run(state, until_step=7)
    assert first.step == 7
    second = trainer(tmp_path, Validation(every_steps=5, figure="accuracy"), precision=precision)
    second.run(state)
    assert second.losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(second), strict=True))
    assert whole.figures() == second.figures()


def test_what_counts_is_the_mean_of_the_last_weights(tmp_path: Path) -> None:
    """The steps themselves stay as they are; a run that is cut while it averages has the same mean."""
    plain = trainer(tmp_path)
    num_averaged = math.ceil(plain.num_steps * 0.4)
    kept = []
    for step in range(1, plain.num_steps + 1):
        plain.run(until_step=step)
        if step > plain.num_steps - num_averaged:
            kept.append([weight.detach().clone() for weight in weights(plain)])
    whole = trainer(tmp_path, averaged_ratio=0.4)
    whole.run()
    assert whole.losses == plain.losses
    for mean, *each in zip(weights(whole), *kept, strict=True):
        torch.testing.assert_close(mean.detach(), torch.stack(each).mean(dim=0))
    state = tmp_path / "run.state"
    trainer(tmp_path, averaged_ratio=0.4).run(state, until_step=whole.num_steps - 2)
    resumed = trainer(tmp_path, averaged_ratio=0.4)
    resumed.run(state)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_the_mean_is_what_is_looked_at(tmp_path: Path) -> None:
    every = Validation(every_steps=1, figure="-loss")
    looked = trainer(tmp_path, every, averaged_ratio=0.5)
    looked.run()
    plain = trainer(tmp_path, averaged_ratio=0.5)
    plain.run()
    assert looked.losses == plain.losses
    assert looked.figures()["loss"] <= plain.figures()["loss"]


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "run.state"
    trainer(tmp_path).run(state, until_step=2)
    with pytest.raises(ValueError, match="the state of another recipe"):
        trainer(tmp_path, learning_rate=1e-4).run(state)
    state.write_bytes(b"short")
    with pytest.raises(ValueError, match="not the state of a run"):
        trainer(tmp_path).run(state)


def test_training_ends_when_nothing_gets_better(tmp_path: Path) -> None:
    """At such a rate the loss soon gets worse; the weights of its best moment stay."""
    made = trainer(tmp_path, Validation(every_steps=2, figure="-loss", patience=2), num_epochs=20, learning_rate=0.3)
    made.run()
    assert made.step < made.num_steps
    looked = trainer(tmp_path, Validation(every_steps=2, figure="-loss"), num_epochs=20, learning_rate=0.3)
    looked.run(until_step=made.step)
    assert made.figures()["loss"] < looked.figures()["loss"]


def test_accumulated_passes_are_one_step(tmp_path: Path) -> None:
    one = trainer(tmp_path, num_accumulated=1)
    four = trainer(tmp_path, num_accumulated=4)
    assert four.num_steps == -(-one.num_steps // 4)


def test_every_example_once_an_epoch_in_batches_within_the_budget() -> None:
    examples = sentences(300, 3)
    batches = cut(examples, 64, random.Random(1))
    assert sorted(number for batch in batches for number in batch) == list(range(300))
    assert all(sum(len(examples[number].token_ids) for number in batch) <= 64 for batch in batches)
    equal = [len({len(examples[number].token_ids) for number in batch}) == 1 for batch in batches]
    assert sum(equal) > 0.9 * len(equal)
    assert batches == cut(examples, 64, random.Random(1))
    assert batches != cut(examples, 64, random.Random(2))


def test_the_rate_rises_and_falls() -> None:
    settings = Optimization(
        num_epochs=1, batch_tokens=1, learning_rate=1.0, weight_decay=0.0, warmup_ratio=0.1, decay="cosine"
    )
    rates = [course(settings, step, 100) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_the_split_is_fixed_and_apart() -> None:
    everything = sentences(100, 3)
    training, validation = split(everything, 0.1, seed=7)
    assert (len(validation), len(training)) == (10, 90)
    assert (training, validation) == split(everything, 0.1, seed=7)
    assert not {id(one) for one in training} & {id(one) for one in validation}


def test_dropout_is_for_training_alone(tmp_path: Path) -> None:
    """It changes what a step sees, and no figure."""
    plain, dropping = (trainer(tmp_path, dropout=ratio) for ratio in (0.0, 0.3))
    assert plain.figures() == dropping.figures()
    for made in (plain, dropping):
        made.run(until_step=1)
    assert plain.losses != dropping.losses
    again = trainer(tmp_path, dropout=0.3)
    again.run(until_step=1)
    assert dropping.losses == again.losses
    assert dropping.figures() == again.figures()
