"""A batch to tensors and back: with `heads`, the only file of this worker that knows torch and the model.

One encoder and everything that reads it: pooled vectors, the checkpoint's own classifier, adapters with a head each.
All of them share a packed pass; a row's adapter is part of the batch.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.adapters import Adapter, attach
from model.checkpoints.registry import load, open_checkpoint
from model.device import resolve_device
from model.encoder import EncoderModel
from model.errors import CheckpointError, ModelError
from model.heads import MaskedLanguageModel, SpanExtractor, TokenClassifier
from model.inspection import Inspection
from model.metadata import AttentionMetadata
from model.tokenizer import Tokenizer
from services.common.settings import ConfigurationError, EncoderSettings, ModelSource, setting_of
from services.encoder.batcher import Item
from services.encoder.heads import own_heads
from services.encoder.tasks.labels import Labels, UnknownLabels
from services.encoder.tasks.pooling import UnknownPooling
from services.encoder.tasks.scores import Scores
from services.encoder.tasks.task import Head

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
_TOKEN_HEADS = (TokenClassifier, MaskedLanguageModel, SpanExtractor)
# Rows of a vocabulary's width that are there at once: 60 MB for 30,000 words.
_SLICE_ROWS = 512


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

    def __init__(self, source: ModelSource, settings: EncoderSettings) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        started = time.perf_counter()
        with _blaming(settings, "device"):
            self._device = resolve_device(settings.device)
        with _blaming(settings, "models"):
            checkpoint = open_checkpoint(source.path)
            self.tokenizer = checkpoint.tokenizer()
            model = load(checkpoint, device=self._device, dtype=_DTYPES[settings.dtype])
            if not isinstance(model, EncoderModel):
                raise CheckpointError(f"{source.path} is a {checkpoint.architecture}, not an encoder")
            _require_rows(self.tokenizer, model, source.path)
            base = ServedModel(source.model_id, "", own_heads(checkpoint, model, self.tokenizer))
        with _blaming(settings, "adapters_dir"):
            self.models = [base, *_adapted(source.adapters_dir, base, model, self.tokenizer)]
        self._model = model
        self.digest = checkpoint.digest
        self.max_input_tokens: int = model.config.max_positions
        self.vocabulary_size: int = model.config.vocabulary_size
        self.num_layers = len(model.encoder.blocks)
        self.num_heads = model.encoder.num_heads
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

    @torch.inference_mode()
    def execute(self, items: Sequence[Item]) -> list[Any]:
        """One packed pass, then each item's own head: scores as an array, or what the item makes of them."""
        outputs: dict[int, Any] = {}
        packed = []
        for index, item in enumerate(items):
            if isinstance(item.head.module, Inspection):
                outputs[index] = _kept(item, self._look_inside(item))
            else:
                packed.append(index)
        if packed:
            outputs |= self._pass([items[index] for index in packed], packed)
        return [outputs[index] for index in range(len(items))]

    def _pass(self, items: Sequence[Item], numbers: Sequence[int]) -> dict[int, Any]:
        """What each item keeps of its scores, under its number."""
        tokens = self._pack(items, usual_size(sum(item.num_tokens for item in items)))
        hidden_TD = self._model.encoder(*tokens)
        outputs = {}
        for head in dict.fromkeys(item.head for item in items):
            mine = [index for index, item in enumerate(items) if item.head is head]
            score = _score_tokens if isinstance(head.module, _TOKEN_HEADS) else _score_sequences
            for index, scores in score(head.module, hidden_TD, tokens[2], items, mine):
                outputs[numbers[index]] = _kept(items[index], scores)
        return outputs

    def _look_inside(self, item: Item) -> Iterator[Scores]:
        """The attention weights of the layers that it names, in a pass of its own."""
        layers = range(self.num_layers) if item.rows is None else item.rows
        for weights_HTT in item.head.module(*self._pack([item], item.num_tokens), layers):
            yield weights_HTT.cpu().numpy()

    def _pack(self, items: Sequence[Item], size: int) -> tuple[Tensor, Tensor, AttentionMetadata]:
        """A batch of `size` tokens: what the items leave of them are sequences of nobody's, at its end."""
        lengths = [item.num_tokens for item in items]
        num_left = size - sum(lengths)
        rest = [0] * num_left
        longest = self.max_input_tokens
        rest_lengths = [min(longest, num_left - start) for start in range(0, num_left, longest)]
        ids = [*(t for item in items for t in item.token_ids), *rest]
        types = [*(t for item in items for t in item.type_ids), *rest]
        adapters = [item.head.adapter for item in items] + [0] * len(rest_lengths)
        metadata = AttentionMetadata.pack([*lengths, *rest_lengths], adapters=adapters, device=self._device)
        return torch.tensor(ids, device=self._device), torch.tensor(types, device=self._device), metadata

    def _warm_up(self) -> float:
        """A pass for every head, so that the first request does not pay for first calls."""
        started = time.perf_counter()
        ids = [0] * min(16, self.max_input_tokens)
        heads = [head for model in self.models for head in model.heads.values()]
        self.execute([Item(ids, [0] * len(ids), head) for head in heads])
        return time.perf_counter() - started


def usual_size(num_tokens: int) -> int:
    """The next larger of few sizes; a small batch is what it is, a large one grows by a sixteenth at most.

    The library of bf16 products on CPUs makes and keeps code for every size of batch that it meets, 2.6 MB each: a
    worker that met all sizes grew by 800 MB, and each new size cost it 10 ms. A GPU's graphs want few sizes, too.
    """
    if num_tokens <= 64:
        return num_tokens
    step = max(8, (1 << num_tokens.bit_length() - 1) // 16)
    return -(-num_tokens // step) * step


def _kept(item: Item, scores: Any) -> Any:
    return scores if item.reduce is None else item.reduce(scores)


def _score_sequences(
    module: nn.Module, hidden_TD: Tensor, metadata: AttentionMetadata, items: Sequence[Item], mine: Sequence[int]
) -> Iterator[tuple[int, Scores]]:
    """A row a sequence, for those of `items` that are `mine`."""
    scores = module(hidden_TD, metadata)[list(mine)].cpu().numpy()
    yield from zip(mine, scores, strict=True)


def _score_tokens(
    module: nn.Module, hidden_TD: Tensor, metadata: AttentionMetadata, items: Sequence[Item], mine: Sequence[int]
) -> Iterator[tuple[int, Scores]]:
    """A row a token that an item asks for, some items at a time: a row may be as wide as the vocabulary."""
    starts = [0, *accumulate(item.num_tokens for item in items)]
    wanted = {index: [starts[index] + row for row in _rows_of(items[index])] for index in mine}
    for some in _in_slices(wanted):
        rows_L = torch.tensor(
            [row for index in some for row in wanted[index]], dtype=torch.int64, device=hidden_TD.device
        )
        scores = module(hidden_TD, replace(metadata, logit_rows_L=rows_L)).cpu().numpy()
        ends = list(accumulate(len(wanted[index]) for index in some))
        for index, start, end in zip(some, [0, *ends], ends, strict=False):
            yield index, scores[start:end]


def _rows_of(item: Item) -> Sequence[int]:
    return range(item.num_tokens) if item.rows is None else item.rows


def _in_slices(wanted: Mapping[int, Sequence[int]]) -> Iterator[list[int]]:
    """Items in order, as many together as ask for no more than _SLICE_ROWS rows, but at least one."""
    some: list[int] = []
    num_rows = 0
    for index, rows in wanted.items():
        if some and num_rows + len(rows) > _SLICE_ROWS:
            yield some
            some, num_rows = [], 0
        some.append(index)
        num_rows += len(rows)
    if some:
        yield some


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


def _adapted(
    folder: Path | None, base: ServedModel, model: EncoderModel, tokenizer: Tokenizer
) -> Iterator[ServedModel]:
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
        if adapter.task == "fill-mask" and tokenizer.mask_token is None:
            raise CheckpointError(f"adapter {adapter.name!r} fills masks, but the tokenizer has no mask token")
        labels = Labels.of(adapter.labels, problem_type=None) if adapter.task == "classify" else None
        yield ServedModel(adapter.name, base.model_id, {adapter.task: Head(module, number, labels)})
