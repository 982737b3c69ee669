"""Scores of tokens to entities, as transformers' token-classification pipeline joins them.

tokens      Mic ##ro ##soft  of  New  York        what the vocabulary makes of the text, each with its scores
words      (Mic ##ro ##soft)(of)(New)(York)       first, average, max: one label for a word
entities   (     B-ORG     )(O )(B-LOC I-LOC)     neighbours of one tag; a B- begins the next entity
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, TypeAlias

import numpy

from services.encoder.tasks.scores import Scores, softmax

Strategy: TypeAlias = Literal["none", "simple", "first", "average", "max"]


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the text: as the vocabulary spells it, its characters `[start, end)`, its place in the input."""

    spelling: str
    start: int
    end: int
    index: int
    is_subword: bool


@dataclass(frozen=True, slots=True)
class Entity:
    """A token (then with its index), or tokens that were joined, under a label."""

    label: str
    score: float
    word: str
    start: int
    end: int
    index: int | None = None


@dataclass(frozen=True, slots=True)
class _Word:
    """Tokens under one label of the model."""

    tokens: Sequence[Token]
    label: str
    score: float

    @property
    def tag(self) -> str:
        return self.label[2:] if self.label.startswith(("B-", "I-")) else self.label


@dataclass(frozen=True, slots=True)
class Aggregation:
    """What one input's scores become; `join` makes text of spellings."""

    tokens: Sequence[Token]
    labels: Sequence[str]
    strategy: Strategy
    ignored: frozenset[str]
    join: Callable[[Sequence[str]], str]

    def __call__(self, scores: Scores) -> list[Entity]:
        """Shape: `[tokens of the input, labels]`."""
        words = self._words(softmax(scores))
        if self.strategy == "none":
            return [_single(word) for word in words if word.label not in self.ignored]
        return [self._joined(group) for group in _neighbours(words) if _name(group) not in self.ignored]

    def _words(self, scores: Scores) -> list[_Word]:
        if not self.tokens:
            return []
        joins_subwords = self.strategy not in ("none", "simple")
        starts = [n for n, token in enumerate(self.tokens) if n == 0 or not (joins_subwords and token.is_subword)]
        ends = [*starts[1:], len(self.tokens)]
        rows = self._rows(scores[[token.index for token in self.tokens]], starts, ends)
        best, sure = rows.argmax(axis=1).tolist(), rows.max(axis=1).tolist()
        return [
            _Word(self.tokens[start:end], self.labels[label], score)
            for start, end, label, score in zip(starts, ends, best, sure, strict=True)
        ]

    def _rows(self, scores: Scores, starts: Sequence[int], ends: Sequence[int]) -> Scores:
        """A row a word, from a row a token; a word's tokens are `[start, end)`."""
        if self.strategy == "average":
            sums: Scores = numpy.add.reduceat(scores, starts, dtype=numpy.float32)
            return sums / numpy.subtract(ends, starts).astype(numpy.float32)[:, None]
        if self.strategy == "max":
            sure = scores.max(axis=1)
            starts = [start + int(sure[start:end].argmax()) for start, end in zip(starts, ends, strict=True)]
        return scores[starts]

    def _joined(self, group: Sequence[_Word]) -> Entity:
        if self.strategy == "simple":
            spellings = [token.spelling for word in group for token in word.tokens]
        else:
            spellings = [self.join([token.spelling for token in word.tokens]) for word in group]
        score = fmean(word.score for word in group)
        start, end = group[0].tokens[0].start, group[-1].tokens[-1].end
        return Entity(_name(group), score, self.join(spellings), start, end)


def without_overlaps(entities: Sequence[Entity]) -> list[Entity]:
    """Of entities that windows of one text share, the longest, then the surest; in the order of the text."""
    kept: list[Entity] = []
    if not entities:
        return kept
    ordered = sorted(entities, key=lambda entity: entity.start)
    last = ordered[0]
    for entity in ordered:
        if last.start <= entity.start < last.end:
            last = max(last, entity, key=lambda one: (one.end - one.start, one.score))
        else:
            kept.append(last)
            last = entity
    return [*kept, last]


def _neighbours(words: Sequence[_Word]) -> list[list[_Word]]:
    groups: list[list[_Word]] = []
    for word in words:
        if groups and word.tag == groups[-1][-1].tag and not word.label.startswith("B-"):
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def _single(word: _Word) -> Entity:
    [token] = word.tokens
    return Entity(word.label, word.score, token.spelling, token.start, token.end, token.index)


def _name(group: Sequence[_Word]) -> str:
    """What stands behind the first hyphen of its first label, be it B-, I- or a letter of another scheme."""
    return group[0].label.split("-", 1)[-1]
