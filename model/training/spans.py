"""Span extraction: where in a passage the answer to a question starts and ends (BERT, §4.2)."""

import json
import random
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from model.encoder import EncoderModel
from model.tokenizer import Encoding, Tokenizer
from model.training.batches import encode, in_order
from model.training.objective import Trainable


@dataclass(frozen=True, slots=True)
class SpanOptions:
    """Units: tokens. A long passage is read in windows of `max_input_tokens` that share `stride` tokens."""

    max_input_tokens: int
    stride: int
    max_answer_tokens: int


@dataclass(frozen=True, slots=True)
class Window:
    """A question and a part of its passage.

    `start` and `end` are rows of the answer's first and last token, 0 ([CLS]) where this part holds no answer.
    `offsets` are characters of the passage, None for every other token.
    """

    token_ids: list[int]
    type_ids: list[int]
    start: int
    end: int
    question: int
    context: str
    answer: str
    offsets: list[tuple[int, int] | None]


class Spans:
    """Reads JSON lines {"context", "question", "answer", "start"}; the answer is "" where there is none."""

    task = "question-answering"
    labels: tuple[str, ...] = ()

    def __init__(self, options: SpanOptions, tokenizer: Tokenizer, *, batch_tokens: int) -> None:
        self._options = options
        self._tokenizer = tokenizer
        self._batch_tokens = batch_tokens

    def read(self, path: Path) -> list[Window]:
        """Raises: ValueError for a line that is no such object, or whose answer does not stand at its start."""
        windows: list[Window] = []
        for number, line in enumerate(path.read_text("utf-8").splitlines()):
            try:
                windows += self._windows(json.loads(line), number)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number + 1}: {error!r}") from None
        return windows

    def _windows(self, values: Mapping[str, Any], number: int) -> list[Window]:
        context, answer, first = values["context"], values["answer"], int(values["start"])
        if answer and context[first : first + len(answer)] != answer:
            raise ValueError(f"the answer does not stand at {first}")
        encodings = self._tokenizer.encode_windows(
            context,
            before=values["question"],
            max_before_tokens=self._options.max_input_tokens // 2,
            max_tokens=self._options.max_input_tokens,
            stride=self._options.stride,
        )
        return [_window(encoding, number, context, answer, first) for encoding in encodings]

    def prepare(self, model: Trainable, head: nn.Module, examples: Sequence[Window]) -> None:
        """A small random head is a good start."""

    def loss(self, model: Trainable, head: nn.Module, batch: Sequence[Window], chance: random.Random) -> Tensor:
        """The mean of the cross-entropies of start and end over the tokens of each window."""
        return torch.stack([_loss(scores, window) for scores, window in _scored(model, head, batch)]).mean()

    @torch.no_grad()
    def figures(self, model: Trainable, head: nn.Module, examples: Sequence[Window]) -> dict[str, float]:
        """Exact match and F1 of SQuAD (Rajpurkar et al., 2016, §6.1), of questions that have an answer.

        The best span of all windows of a question counts.
        """
        losses = []
        best: dict[int, tuple[float, str, str]] = {}
        for numbers in in_order(examples, self._batch_tokens):
            for scores_L2, window in _scored(model, head, [examples[number] for number in numbers]):
                losses.append(_loss(scores_L2, window).item())
                score, text = _best_span(scores_L2, window, self._options.max_answer_tokens)
                if window.question not in best or score > best[window.question][0]:
                    best[window.question] = (score, text, window.answer)
        pairs = [(text, answer) for _, text, answer in best.values() if answer]
        count = max(1, len(pairs))
        return {
            "loss": sum(losses) / len(losses),
            "exact_match": sum(_words(text) == _words(answer) for text, answer in pairs) / count,
            "f1": sum(overlap(text, answer) for text, answer in pairs) / count,
            "num_questions": len(pairs),
        }


def _window(encoding: Encoding, number: int, context: str, answer: str, first: int) -> Window:
    is_context = [text_number == 1 for text_number in encoding.text_numbers]
    offsets = [offset if mine else None for offset, mine in zip(encoding.offsets, is_context, strict=True)]
    last = first + len(answer)
    rows = [row for row, offset in enumerate(offsets) if offset and offset[0] < last and offset[1] > first]
    is_whole = (
        bool(answer and rows)
        and _reaches(offsets[rows[0]], first, context)
        and _reaches(offsets[rows[-1]], last - 1, context)
    )
    start, end = (rows[0], rows[-1]) if is_whole else (0, 0)
    return Window(encoding.ids, encoding.type_ids, start, end, number, context, answer, offsets)


def _reaches(offset: tuple[int, int] | None, place: int, context: str) -> bool:
    """Whether a token holds a character, or the character is a blank, which no token has."""
    return offset is not None and (offset[0] <= place < offset[1] or context[place].isspace())


def _scored(model: Trainable, head: nn.Module, batch: Sequence[Window]) -> list[tuple[Tensor, Window]]:
    """Each window with the scores of its tokens. Shape: `[L, 2]`."""
    assert isinstance(model, EncoderModel)
    hidden_TD, metadata = encode(model, [one.token_ids for one in batch], [one.type_ids for one in batch])
    scores_T2 = head(hidden_TD, metadata)
    return list(zip(scores_T2.split(list(metadata.query_lengths)), batch, strict=True))


def _loss(scores_L2: Tensor, window: Window) -> Tensor:
    target_2 = torch.tensor([window.start, window.end], device=scores_L2.device)
    return cross_entropy(scores_L2.T.float(), target_2)


def _best_span(scores_L2: Tensor, window: Window, max_answer_tokens: int) -> tuple[float, str]:
    """The score and the text of the best span of the passage that is not too long."""
    is_open_L = torch.tensor([offset is not None for offset in window.offsets], device=scores_L2.device)
    start_L, end_L = scores_L2.float().masked_fill(~is_open_L[:, None], -torch.inf).unbind(dim=1)
    is_span_LL = (
        torch.ones(len(start_L), len(end_L), dtype=torch.bool, device=scores_L2.device)
        .triu()
        .tril(max_answer_tokens - 1)
    )
    spans_LL = (start_L[:, None] + end_L[None, :]).masked_fill(~is_span_LL, -torch.inf)
    best = int(spans_LL.argmax())
    first, last = window.offsets[best // len(start_L)], window.offsets[best % len(start_L)]
    if first is None or last is None:
        return -float("inf"), ""
    return float(spans_LL.flatten()[best]), window.context[first[0] : last[1]]


def _words(text: str) -> list[str]:
    """Lower case, without punctuation and articles, as SQuAD compares answers."""
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def overlap(text: str, answer: str) -> float:
    """F1 of the words that two answers share."""
    ours, theirs = _words(text), _words(answer)
    num_shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * num_shared / (len(ours) + len(theirs)) if num_shared else float(ours == theirs)
