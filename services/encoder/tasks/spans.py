"""Scores of a window's tokens to spans of the context, as transformers' question-answering pipeline chooses them.

tokens   [CLS] where is it ? [SEP] it is in the park . [SEP]
answers    +     -   -  -  -   -   +  +  +  +   +   +   -      what a span may start and end with

Softmax goes over the tokens with a +, and a span's score is that of its first token as a start times that of its last
one as an end. [CLS] with itself is "there is no answer", and no other span. Source: Devlin et al., "BERT", 2019, §4.3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy
from numpy.lib.stride_tricks import sliding_window_view

from services.encoder.tasks.inputs import Encoding
from services.encoder.tasks.scores import Scores, softmax

Indices: TypeAlias = "numpy.ndarray[Any, numpy.dtype[numpy.intp]]"
Pair: TypeAlias = tuple[int, int, float]
"""First token, last token, score."""

# In the place of a score that doesn't count. Where none counts, all tokens are equally likely, and no span is left.
_MASKED = -10_000.0


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `[start, end)` of the context."""

    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class WindowAnswers:
    """What one window has to say: its spans, best first, and how likely it is that none of them is an answer."""

    spans: Sequence[Span]
    no_answer: float


@dataclass(frozen=True, slots=True)
class Extraction:
    """What one window's scores become; the context is the second of its two texts."""

    window: Encoding
    num_spans: int
    max_answer_tokens: int
    is_aligned_to_words: bool

    def __call__(self, scores: Scores) -> WindowAnswers:
        """Shape: `[tokens of the window, 2]`, for starts and ends."""
        is_possible = self._possible()
        start, end = (softmax(numpy.where(is_possible, scores[:, column], _MASKED)) for column in (0, 1))
        no_answer = float(start[0] * end[0])
        start[0] = end[0] = 0
        is_possible[0] = True  # as the pipeline has it, be it [CLS] or not: whatever begins or ends there has no score
        best = _best_pairs(start, end, self.num_spans, self.max_answer_tokens)
        pairs = [pair for pair in best if is_possible[pair[0]] and is_possible[pair[1]]]
        return WindowAnswers(self._spans(pairs), no_answer)

    def _possible(self) -> list[bool]:
        ids = self.window.ids
        # A text may spell [CLS] out; it counts there, too.
        cls_id = ids[0] if self.window.special_mask[0] else None
        numbers = self.window.text_numbers
        return [number == 1 or token_id == cls_id for token_id, number in zip(ids, numbers, strict=True)]

    def _spans(self, pairs: Sequence[Pair]) -> list[Span]:
        offsets, numbers = self.window.offsets, self.window.word_numbers
        words = self._words() if self.is_aligned_to_words else {}
        spans = []
        for first, last, score in pairs:
            begin, end = words.get(numbers[first]), words.get(numbers[last])
            # A token that belongs to no word of the context has its own borders, and so has the other one then.
            if begin is None or end is None:
                begin, end = offsets[first], offsets[last]
            spans.append(Span(begin[0], end[1], score))
        return spans

    def _words(self) -> Mapping[int | None, tuple[int, int]]:
        """The characters of each word of the context, as far as it is in this window."""
        words: dict[int | None, tuple[int, int]] = {}
        places = zip(self.window.word_numbers, self.window.text_numbers, self.window.offsets, strict=True)
        for word, number, (start, end) in places:
            if number == 1 and word is not None:
                words[word] = (words[word][0] if word in words else start, end)
        return words


def _best_pairs(start: Scores, end: Scores, count: int, max_tokens: int) -> list[Pair]:
    """The `count` best spans of at most `max_tokens`, best first.

    Where fewer have a score above 0, the pipeline fills up with pairs of score 0, those that its partition of all pairs
    happens to leave in front. The same partition is made here then, so that there are as many answers.
    """
    num_tokens = len(start)
    width = min(max_tokens, num_tokens)
    # A row for each first token, a column for each number of tokens after it.
    padded = numpy.concatenate([end, numpy.zeros(width - 1, end.dtype)])
    products = (start[:, None] * sliding_window_view(padded, width)).ravel()
    if numpy.count_nonzero(products) >= count:
        best = _largest(products, count)
        firsts, lasts = best // width, best // width + best % width
    else:
        products = numpy.tril(numpy.triu(numpy.outer(start, end)), max_tokens - 1).ravel()
        best = _largest(products, count)
        firsts, lasts = best // num_tokens, best % num_tokens
    return list(zip(firsts.tolist(), lasts.tolist(), products[best].tolist(), strict=True))


def _largest(values: Scores, count: int) -> Indices:
    """Where the largest are, in order."""
    if count == 1:
        return numpy.array([values.argmax()])
    if count >= len(values):
        return (-values).argsort()
    best = (-values).argpartition(count)[:count]
    return best[(-values[best]).argsort()]
