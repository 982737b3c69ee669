"""A batch to tensors and back: the only file of this worker that knows torch and the model.

One encoder and everything that reads it: pooled vectors, the checkpoint's own classifier, an adapter and a head a task.
All of them share a packed pass; a row's adapter is part of the batch.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from model.adapters import Adapter, attach
from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.registry import load, open_checkpoint
from model.device import resolve_device
from model.encoder import EncoderModel
from model.errors import CheckpointError, DeviceError, ModelError
from model.heads import Pooling, SequenceClassifier
from model.metadata import AttentionMetadata
from model.tokenizer import Encoding
from services.common.settings import ConfigurationError, EncoderSettings, setting_of
from services.encoder.batcher import Item
from services.encoder.tasks.classify import Labels

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ServedModel:
    """One model id: what reads the shared encoder, through which adapter (0: none)."""

    model_id: str
    parent: str
    task: Literal["classify", "embeddings"]
    adapter: int
    head: nn.Module
    labels: Labels | None


class Runner:
    """A loaded encoder.

    Raises: ConfigurationError, with the setting at fault, for a checkpoint or a device that can't be used.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        started = time.perf_counter()
        try:
            self._device = resolve_device(settings.device)
            checkpoint = open_checkpoint(settings.model)
            self._tokenizer = checkpoint.tokenizer()
            model = load(checkpoint, device=self._device, dtype=_DTYPES[settings.dtype])
            self.digest = checkpoint.digest
            if not isinstance(model, EncoderModel):
                raise CheckpointError(f"{settings.model} is a {checkpoint.architecture}, not an encoder")
            self._model = model
            self.models = _served(settings, checkpoint, model)
        except DeviceError as error:
            raise ConfigurationError(f"{setting_of(settings, 'device')}: {error}") from error
        except ModelError as error:
            raise ConfigurationError(f"{setting_of(settings, 'model')}: {error}") from error
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

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        return self._tokenizer.encode_batch(texts)

    def truncated(self, tokens: Any) -> Encoding:
        """The first tokens of an input that is too long; a last special token, such as [SEP], stays last."""
        mask = tokens.special_mask if isinstance(tokens, Encoding) else [0] * len(tokens.ids)
        num_closing = 1 if mask[-1] else 0
        kept = [*range(self.max_input_tokens - num_closing), *([len(tokens.ids) - 1] * num_closing)]
        return Encoding(
            ids=[tokens.ids[i] for i in kept],
            offsets=[],
            type_ids=[tokens.type_ids[i] for i in kept],
            special_mask=[mask[i] for i in kept],
        )

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
        heads = {id(item.head): item.head for item in items}
        for head in heads.values():
            answers: list[list[float]] = head.head(hidden_TD, metadata).tolist()
            for index, item in enumerate(items):
                if item.head is head:
                    outputs[index] = answers[index]
        return outputs

    def _warm_up(self) -> float:
        """A pass for every model, so that the first request does not pay for first calls."""
        started = time.perf_counter()
        ids = [0] * min(16, self.max_input_tokens)
        self.execute([Item(ids, [0] * len(ids), model) for model in self.models])
        return time.perf_counter() - started


def _served(settings: EncoderSettings, checkpoint: Checkpoint, model: EncoderModel) -> list[ServedModel]:
    """The checkpoint under its own id, as a classifier if it is one and as vectors if not, and each adapter."""
    base = settings.model_id
    if isinstance(model.head, SequenceClassifier):
        names = checkpoint.config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(model.config.num_labels)}
        ordered = [names[key] for key in sorted(names, key=int)]
        labels = Labels.of(ordered, checkpoint.config.get("problem_type"))
        return [ServedModel(base, "", "classify", 0, model.head, labels)]
    served = [ServedModel(base, "", "embeddings", 0, _pooling(checkpoint.path), None)]
    adapters = _adapters(settings.adapters_dir)
    for number, (adapter, head) in enumerate(zip(adapters, attach(model, adapters), strict=True), start=1):
        served.append(ServedModel(adapter.name, base, "classify", number, head, Labels.of(adapter.labels, None)))
    return served


def _adapters(folder: Path | None) -> list[Adapter]:
    if folder is None:
        return []
    return [Adapter.load(path.parent) for path in sorted(folder.glob("*/adapter.json"))]


def _pooling(folder: Path) -> Pooling:
    """As the sentence-transformers files say; without them the mean, of length 1.

    Raises: CheckpointError for a kind of pooling that is not served.
    """
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        return Pooling("mean", is_normalized=True)
    try:
        config = json.loads(path.read_text("utf-8"))
        modes = {key.removeprefix("pooling_mode_") for key, value in config.items() if value is True}
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a pooling config: {error}") from error
    modes.discard("include_prompt")
    if modes == {"mean_tokens"}:
        return Pooling("mean", is_normalized=True)
    if modes == {"cls_token"}:
        return Pooling("cls", is_normalized=True)
    raise CheckpointError(f"{path}: pooling by {', '.join(sorted(modes)) or 'nothing'} is not served")
