"""Recipes and models for the tests of training: small, and quick to learn something."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import small_models
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from model.checkpoints.registry import load, open_checkpoint
from model.encoder import EncoderModel
from model.heads import MaskedLanguageModel
from model.normalization import LayerNorm
from model.training.objective import Objective, Trainable
from model.training.recipe import Optimization, Recipe, Tuning, Validation
from model.training.trainer import Trainer
from model.training.tuning import TunedModel

SPECIAL = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3}


def recipe(objective: str, folder: Path, *, validation: Validation | None = None, **changes: Any) -> Recipe:
    """Changes are of the tuning or of the optimization."""
    tuning: dict[str, Any] = {"method": "lora", "rank": 8}
    optimization: dict[str, Any] = {
        "num_epochs": 12,
        "batch_tokens": 128,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "warmup_ratio": 0.1,
    }
    for name, value in changes.items():
        (tuning if name in Tuning.__slots__ else optimization)[name] = value
    return Recipe(
        name="made",
        objective=objective,
        data=(folder / "data",),
        output=folder / "made",
        seed=7,
        tuning=Tuning(**tuning),
        optimization=Optimization(**optimization),
        validation=validation or Validation(ratio=0.1),
        options={},
        folder=folder,
    )


def save(folder: Path, kind: str = "bert") -> Path:
    """A small model whose tokenizer has BERT's special tokens and the words w4 to w95."""
    small_models.save(getattr(small_models, kind)(), folder)
    words = {**SPECIAL, **{f"w{i}": i for i in range(len(SPECIAL), small_models.VOCABULARY_SIZE)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def small(folder: Path, kind: str = "bert") -> Trainable:
    save(folder, kind)
    model = load(open_checkpoint(folder), device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(model, Trainable)
    return model


def trainer(
    model: Trainable, objective: Objective[Any], made: Recipe, training: Sequence[Any], validation: Sequence[Any] = ()
) -> Trainer[Any]:
    tuned = TunedModel(model, made, task=objective.task, labels=objective.labels)
    objective.prepare(model, tuned.head, training)
    return Trainer(tuned, objective, made, training, validation or training)


def masked_head(model: EncoderModel, tensors: Mapping[str, torch.Tensor]) -> MaskedLanguageModel:
    """A masked-language head put together by hand, over the model's own token table."""
    tokens = model.encoder.embeddings.tokens
    head = MaskedLanguageModel(model.config.width, "gelu", LayerNorm(model.config.width, 1e-12), tokens)
    for name, tensor in tensors.items():
        head.get_parameter(name).data.copy_(tensor)
    return head.eval()
