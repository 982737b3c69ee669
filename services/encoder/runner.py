"""A batch to tensors and back: the only file of this worker that knows torch and the model.

One encoder and everything that reads it: pooled vectors, the checkpoint's own classifier, adapters with a head each.
All of them share a packed pass; a row's adapter is part of the batch.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from model.adapters import Adapter, attach
from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.registry import load, open_checkpoint
from model.device import resolve_device
from model.encoder import EncoderModel
from model.errors import CheckpointError, ModelError
from model.heads import Pooling, SequenceClassifier
from model.metadata import AttentionMetadata
from model.tokenizer import Tokenizer
from services.common.settings import ConfigurationError, EncoderSettings, setting_of
from services.encoder.batcher import Item
from services.encoder.tasks.inputs import Tokens
from services.encoder.tasks.labels import Labels, UnknownLabels
from services.encoder.tasks.pooling import UnknownPooling, pooling_mode
from services.encoder.tasks.task import Head

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model id and a head for each of its tasks."""

    model_id: str
    parent: str
    heads: Mapping[str, Head]


class Runner:
    """A loaded encoder.

    Raises: ConfigurationError, with the setting at fault, for a checkpoint or a device that can't be used.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        started = time.perf_counter()
        with _blaming(settings, "device"):
            self._device = resolve_device(settings.device)
        with _blaming(settings, "model"):
            checkpoint = open_checkpoint(settings.model)
            self._tokenizer = checkpoint.tokenizer()
            model = load(checkpoint, device=self._device, dtype=_DTYPES[settings.dtype])
            if not isinstance(model, EncoderModel):
                raise CheckpointError(f"{settings.model} is a {checkpoint.architecture}, not an encoder")
            _require_rows(self._tokenizer, model, settings.model)
            base = ServedModel(settings.model_id, "", _own_heads(checkpoint, model))
        with _blaming(settings, "adapters_dir"):
            self.models = [base, *_adapted(settings.adapters_dir, base, model)]
        self._model = model
        self.digest = checkpoint.digest
        self.max_input_tokens: int = model.config.max_positions
        self.vocabulary_size: int = model.config.vocabulary_size
        self.width: int = model.config.width
        self.load_seconds = time.perf_counter() - started
        self.warm_up_seconds = self._warm_up()

    @property
    def device(self) -> str:
        return str(self._device)

    @property
    def dtype(self) -> str:
        return str(next(self._model.parameters()).dtype).removeprefix("torch.")

    @property
    def kernel(self) -> str:
        return self._model.encoder.kernel_name

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        return [Tokens(one.ids, one.type_ids) for one in self._tokenizer.encode_batch(texts)]

    def truncated(self, tokens: Tokens) -> Tokens:
        """The first tokens of an input that is too long; a last special token, such as [SEP], stays last."""
        num_closing = int(tokens.ids[-1] in self._tokenizer.special_ids)
        kept = slice(self.max_input_tokens - num_closing)
        last = slice(len(tokens.ids) - num_closing, None)
        return Tokens(tokens.ids[kept] + tokens.ids[last], tokens.type_ids[kept] + tokens.type_ids[last])

    @torch.inference_mode()
    def execute(self, items: Sequence[Item]) -> list[list[float]]:
        """One packed pass, then each item's own head: a vector or a score a label, for each item."""
        token_ids_T = torch.tensor([t for item in items for t in item.token_ids], device=self._device)
        token_types_T = torch.tensor([t for item in items for t in item.type_ids], device=self._device)
        metadata = AttentionMetadata.pack(
            [item.num_tokens for item in items], adapters=[item.head.adapter for item in items], device=self._device
        )
        hidden_TD = self._model.encoder(token_ids_T, token_types_T, metadata)
        outputs: list[list[float]] = [[] for _ in items]
        for head in dict.fromkeys(item.head for item in items):
            rows = [row for row, item in enumerate(items) if item.head is head]
            answers: list[list[float]] = head.module(hidden_TD, metadata)[rows].tolist()
            for row, answer in zip(rows, answers, strict=True):
                outputs[row] = answer
        return outputs

    def _warm_up(self) -> float:
        """A pass for every head, so that the first request does not pay for first calls."""
        started = time.perf_counter()
        ids = [0] * min(16, self.max_input_tokens)
        heads = [head for model in self.models for head in model.heads.values()]
        self.execute([Item(ids, [0] * len(ids), head) for head in heads])
        return time.perf_counter() - started


@contextmanager
def _blaming(settings: EncoderSettings, field: str) -> Iterator[None]:
    """Raises: ConfigurationError in one line with the setting, for whatever the model refuses."""
    try:
        yield
    except (ModelError, UnknownPooling, UnknownLabels) as error:
        cause = " ".join(str(error).split())
        raise ConfigurationError(f"{setting_of(settings, field)}: {cause}") from error


def _require_rows(tokenizer: Tokenizer, model: EncoderModel, path: Path) -> None:
    """Raises: CheckpointError for a token that the model has no row for: a text with it would fail its whole batch."""
    last = max(tokenizer.backend.get_vocab(with_added_tokens=True).values(), default=0)
    if last >= model.config.vocabulary_size:
        num_rows = model.config.vocabulary_size
        raise CheckpointError(f"{path}: the tokenizer has a token {last}, but the model only {num_rows} rows")


def _own_heads(checkpoint: Checkpoint, model: EncoderModel) -> dict[str, Head]:
    """Vectors from every encoder, and labels where the checkpoint has a classifier."""
    heads = {"embeddings": Head(Pooling(pooling_mode(checkpoint.path), is_normalized=True))}
    if isinstance(model.head, SequenceClassifier):
        labels = Labels.of_checkpoint(checkpoint.config, model.config.num_labels)
        heads["classify"] = Head(model.head, labels=labels)
    return heads


def _adapted(folder: Path | None, base: ServedModel, model: EncoderModel) -> Iterator[ServedModel]:
    """Mutates: `model`, which gets all adapters. Raises: CheckpointError."""
    if folder is None:
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder")
    adapters = [Adapter.load(path.parent) for path in sorted(folder.glob("*/adapter.json"))]
    names = [base.model_id, *(adapter.name for adapter in adapters)]
    if len(set(names)) < len(names):
        raise CheckpointError(f"{folder}: two models of one name among {', '.join(names)}")
    for number, (adapter, module) in enumerate(zip(adapters, attach(model, adapters), strict=True), start=1):
        head = Head(module, number, Labels.of(adapter.labels, problem_type=None))
        yield ServedModel(adapter.name, base.model_id, {"classify": head})
