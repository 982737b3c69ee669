"""Rated sentences: how they are read, split and cut into batches."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class RatedSentence:
    """A sentence with the mean rating of its readers, -4 (worst) to +4 (best), and where it came from."""

    source: str
    rating: float
    token_ids: list[int]


def read_rated(path: Path, tokenizer: Tokenizer, max_tokens: int) -> list[RatedSentence]:
    """Raises: ValueError for a line that has not source, rating and text."""
    sentences = []
    for number, line in enumerate(path.read_text("utf-8").splitlines()[1:], start=2):
        fields = line.split("\t")
        if len(fields) != 3:
            raise ValueError(f"{path}, line {number}: {len(fields)} fields, 3 are needed")
        ids = tokenizer.encode(fields[2]).ids
        if len(ids) > max_tokens:
            ids = [*ids[: max_tokens - 1], ids[-1]]
        sentences.append(RatedSentence(fields[0], float(fields[1]), ids))
    return sentences


def split(
    sentences: Sequence[RatedSentence], validation_ratio: float, seed: int
) -> tuple[list[RatedSentence], list[RatedSentence]]:
    """Training and validation parts: the same for the same seed, whatever the machine."""
    shuffled = list(sentences)
    random.Random(seed).shuffle(shuffled)
    num_validation = round(len(shuffled) * validation_ratio)
    return shuffled[num_validation:], shuffled[:num_validation]


def batches(
    sentences: Sequence[RatedSentence], max_tokens: int, generator: random.Random
) -> Iterator[list[RatedSentence]]:
    """Every sentence once, in random order, cut by tokens: no padding, so lengths may mix freely."""
    shuffled = list(sentences)
    generator.shuffle(shuffled)
    batch: list[RatedSentence] = []
    num_tokens = 0
    for sentence in shuffled:
        if batch and num_tokens + len(sentence.token_ids) > max_tokens:
            yield batch
            batch, num_tokens = [], 0
        batch.append(sentence)
        num_tokens += len(sentence.token_ids)
    if batch:
        yield batch
