"""Sequence classification: sentences with a label, or with the mean rating of their readers."""

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from model.encoder import EncoderModel
from model.tokenizer import Tokenizer
from model.training.batches import encode, in_order
from model.training.objective import Trainable

# Sentences whose readers leant this far to one side have an opinion that can be told right or wrong.
_CERTAIN_RATING = 0.5


@dataclass(frozen=True, slots=True)
class ClassificationOptions:
    """A rating r asks for the second of two labels with probability 1 / (1 + exp(-sharpness r)).

    While training, a token is hidden by the mask token with probability `hidden_ratio`.
    """

    labels: tuple[str, ...]
    max_input_tokens: int
    sharpness: float = 1.5
    hidden_ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class Sentence:
    """A probability for each label, where the sentence came from, and its rating where it has one."""

    token_ids: list[int]
    targets: tuple[float, ...]
    source: str = ""
    rating: float | None = None


class Classification:
    """Reads tables with the columns `text`, `label` or `rating`, and perhaps `source`, with tabs between them."""

    task = "classify"

    def __init__(self, options: ClassificationOptions, tokenizer: Tokenizer, *, batch_tokens: int) -> None:
        self._options = options
        self._tokenizer = tokenizer
        self._batch_tokens = batch_tokens

    @property
    def labels(self) -> tuple[str, ...]:
        return self._options.labels

    def read(self, path: Path) -> list[Sentence]:
        """Raises: ValueError for a line that has not what the header names, or a label that the recipe does not."""
        header, *lines = path.read_text("utf-8").splitlines() or [""]
        columns = header.split("\t")
        if "text" not in columns or not {"label", "rating"} & set(columns):
            raise ValueError(f"{path}: the first line names the columns: text, label or rating, and perhaps source")
        sentences = []
        for number, line in enumerate(lines, start=2):
            values = line.split("\t")
            if len(values) != len(columns):
                raise ValueError(f"{path}, line {number}: {len(values)} fields, {len(columns)} are needed")
            try:
                sentences.append(self._sentence(dict(zip(columns, values, strict=True))))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
        return sentences

    def _sentence(self, values: Mapping[str, str]) -> Sentence:
        ids = self._tokenizer.encode_within(self._options.max_input_tokens, values["text"]).ids
        source = values.get("source", "")
        if "rating" in values:
            if len(self.labels) != 2:
                raise ValueError(f"a rating is for two labels, not for {len(self.labels)}")
            rating = float(values["rating"])
            second = 1 / (1 + math.exp(-self._options.sharpness * rating))
            return Sentence(ids, (1 - second, second), source, rating)
        if values["label"] not in self.labels:
            raise ValueError(f"label {values['label']!r} is none of {', '.join(self.labels)}")
        return Sentence(ids, tuple(float(label == values["label"]) for label in self.labels), source)

    def prepare(self, model: Trainable, head: nn.Module, examples: Sequence[Sentence]) -> None:
        """A small random head is a good start."""

    def loss(self, model: Trainable, head: nn.Module, batch: Sequence[Sentence], chance: random.Random) -> Tensor:
        """Cross-entropy against what the readers say: near 0 asks for doubt, far from it for certainty."""
        scores_SC = self._scores(model, head, [self._hidden(sentence.token_ids, chance) for sentence in batch])
        return cross_entropy(scores_SC, _targets(batch, scores_SC.device))

    def _hidden(self, ids: list[int], chance: random.Random) -> list[int]:
        ratio = self._options.hidden_ratio
        if not ratio:
            return ids
        mask = self._tokenizer.token_to_id(self._tokenizer.mask_token or "")
        assert mask is not None
        special = self._tokenizer.special_ids
        return [mask if token not in special and chance.random() < ratio else token for token in ids]

    def _scores(self, model: Trainable, head: nn.Module, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Shape: `[S, labels]`."""
        assert isinstance(model, EncoderModel)
        hidden_TD, metadata = encode(model, sequences)
        return head(hidden_TD, metadata)

    @torch.no_grad()
    def figures(self, model: Trainable, head: nn.Module, examples: Sequence[Sentence]) -> dict[str, float]:
        """The share of sentences whose best label is theirs: of all, of those rated with certainty, by source.

        Sentences rated exactly 0 have no sign and are left out of the shares.
        """
        right: dict[str, list[bool]] = defaultdict(list)
        losses = []
        for numbers in in_order(examples, self._batch_tokens):
            batch = [examples[number] for number in numbers]
            scores_SC = self._scores(model, head, [sentence.token_ids for sentence in batch])
            targets_SC = _targets(batch, scores_SC.device)
            losses += cross_entropy(scores_SC, targets_SC, reduction="none").tolist()
            is_right_S = scores_SC.argmax(dim=1) == targets_SC.argmax(dim=1)
            for sentence, is_right in zip(batch, is_right_S.tolist(), strict=True):
                for part in _parts(sentence):
                    right[part].append(is_right)
        shares = {part: sum(hits) / len(hits) for part, hits in sorted(right.items())}
        return {"loss": sum(losses) / len(losses), **shares, "num_certain": len(right["accuracy_certain"])}


def _targets(batch: Sequence[Sentence], device: torch.device) -> Tensor:
    return torch.tensor([sentence.targets for sentence in batch], device=device)


def _parts(sentence: Sentence) -> list[str]:
    """The figures that a sentence counts in."""
    if sentence.rating == 0:
        return []
    parts = ["accuracy"]
    if sentence.rating is None or abs(sentence.rating) >= _CERTAIN_RATING:
        parts.append("accuracy_certain")
        if sentence.source:
            parts.append(f"accuracy_certain_{sentence.source}")
    return parts
