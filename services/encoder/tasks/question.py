"""Extractive question answering: the passages of a context that answer a question.

A long context is read in windows that overlap, each after the whole question, and answers of several windows with one
text become one. Equal to transformers' question-answering pipeline (4.57, the last release that has it) over a
tokenizer.json; that one ignores `max_question_len` there, and here a question is whole unless a request says how long.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from janus.v1 import encoder_pb2
from services.common.errors import ContextLengthExceeded, InvalidRequest
from services.encoder.batcher import Item
from services.encoder.tasks.inputs import (
    EncodedInputs,
    TextEncoder,
    TextTokenizer,
    WindowedText,
    require_few_windows,
    require_readable,
)
from services.encoder.tasks.spans import Extraction, Span, WindowAnswers
from services.encoder.tasks.task import Head

_DEFAULT_TOP_K = 1
_DEFAULT_ANSWER_TOKENS = 15
_DEFAULT_WINDOW_TOKENS = 384
_DEFAULT_STRIDE = 128
_MAX_SPANS = 2**16
"""What one request's windows may find: each is a text that is compared with the others."""


@dataclass(frozen=True, slots=True)
class _Limits:
    """A request's parameters, its defaults filled in."""

    top_k: int
    stride: int
    max_answer_tokens: int
    max_window_tokens: int
    max_question_tokens: int
    is_aligned_to_words: bool

    @classmethod
    def of(cls, parameters: encoder_pb2.AnswerQuestionParameters, max_input_tokens: int) -> "_Limits":
        """Raises: InvalidRequest."""
        given = {field.name: value for field, value in parameters.ListFields()}
        window = min(max_input_tokens, _DEFAULT_WINDOW_TOKENS)
        window = _chosen(given, "max_seq_len", window, most=max_input_tokens)
        stride = min(window // 2, _DEFAULT_STRIDE)
        return cls(
            top_k=_chosen(given, "top_k", _DEFAULT_TOP_K),
            stride=_chosen(given, "doc_stride", stride, least=0, most=window),
            max_answer_tokens=_chosen(given, "max_answer_len", _DEFAULT_ANSWER_TOKENS),
            max_window_tokens=window,
            max_question_tokens=_chosen(given, "max_question_len", max_input_tokens),
            is_aligned_to_words=given.get("align_to_words", True),
        )

    @property
    def num_spans(self) -> int:
        """Of each window: more than are asked for where several may become one, because they are in the same words."""
        return 2 * self.top_k + 10 if self.is_aligned_to_words else self.top_k


class AnswerQuestion:
    """The best answers to each question, from its context."""

    name = "question-answering"

    async def encode(
        self, request: encoder_pb2.AnswerQuestionRequest, head: Head, encoder: TextEncoder
    ) -> EncodedInputs:
        limits = _Limits.of(request.parameters, encoder.max_input_tokens)
        _require_inputs(request.inputs)
        require_readable(encoder, (text for one in request.inputs for text in (one.question, one.context)))
        return await asyncio.to_thread(_encode, request.inputs, limits, head, encoder)

    def decode(
        self, request: encoder_pb2.AnswerQuestionRequest, head: Head, outputs: Sequence[Sequence[Any]]
    ) -> encoder_pb2.AnswerQuestionResponse:
        parameters = request.parameters
        top_k = parameters.top_k if parameters.HasField("top_k") else _DEFAULT_TOP_K
        results = []
        for one, of_windows in zip(request.inputs, outputs, strict=True):
            context = one.context
            spans = _merged(context, of_windows)
            if parameters.handle_impossible_answer:
                spans.append(Span(0, 0, min(window.no_answer for window in of_windows)))
            spans.sort(key=lambda span: -span.score)
            answers = [
                encoder_pb2.Answer(
                    answer=context[span.start : span.end], score=span.score, start=span.start, end=span.end
                )
                for span in spans[:top_k]
            ]
            results.append(encoder_pb2.QuestionAnswers(answers=answers))
        return encoder_pb2.AnswerQuestionResponse(results=results)


def _merged(context: str, windows: Sequence[WindowAnswers]) -> list[Span]:
    """Spans of one text, in capitals or not, become the first of them, and their scores one."""
    answers: dict[str, Span] = {}
    for window in windows:
        for span in window.spans:
            text = context[span.start : span.end].lower()
            first = answers.get(text)
            answers[text] = span if first is None else Span(first.start, first.end, first.score + span.score)
    return list(answers.values())


def _encode(
    inputs: Sequence[encoder_pb2.QuestionInContext], limits: _Limits, head: Head, encoder: TextEncoder
) -> EncodedInputs:
    """Raises: InvalidRequest, ContextLengthExceeded."""
    tokenizer = encoder.tokenizer
    questions = tokenizer.encode_batch([one.question for one in inputs], add_special_tokens=False)
    contexts = tokenizer.encode_batch([one.context for one in inputs], add_special_tokens=False)
    num_tokens = [(len(question), len(context)) for question, context in zip(questions, contexts, strict=True)]
    choices = (limits.num_spans, limits.max_answer_tokens, limits.is_aligned_to_words)
    texts = _windowed(num_tokens, limits, tokenizer)
    require_few_windows(texts, limits.stride, param="parameters.doc_stride")
    _require_few_spans(texts, limits)
    rows = []
    for one, text in zip(inputs, texts, strict=True):
        windows = tokenizer.encode_windows(
            one.context,
            before=one.question,
            max_before_tokens=limits.max_question_tokens,
            max_tokens=limits.max_window_tokens,
            stride=limits.stride if text.num_tokens > text.room else 0,
        )
        rows.append(
            [Item(window.ids, window.type_ids, head, reduce=Extraction(window, *choices)) for window in windows]
        )
    is_truncated = any(num_question > limits.max_question_tokens for num_question, _ in num_tokens)
    return EncodedInputs(rows, is_truncated)


def _windowed(num_tokens: Sequence[tuple[int, int]], limits: _Limits, tokenizer: TextTokenizer) -> list[WindowedText]:
    """Each context, beside its question.

    Raises: ContextLengthExceeded for a question that leaves no room; InvalidRequest for no token at all, and for a
    stride that makes endless windows.
    """
    size = limits.max_window_tokens
    texts = []
    for index, (num_question, num_context) in enumerate(num_tokens):
        if num_question + num_context == 0:
            raise InvalidRequest(f"'inputs[{index}]' needs at least one token.", param="inputs")
        question = f"'inputs[{index}].question'"
        num_beside = tokenizer.num_special_tokens(is_pair=True) + min(num_question, limits.max_question_tokens)
        room = size - num_beside
        if room < 1:
            raise ContextLengthExceeded(
                f"{question} has {num_question} tokens, a window of {size} has no room left for the context.",
                param="inputs",
            )
        if num_context > room and limits.stride >= room:
            param = "parameters.doc_stride"
            raise InvalidRequest(
                f"'{param}' must be less than {room}, the tokens of the context beside {question}.", param=param
            )
        texts.append(WindowedText(num_context, room, num_beside))
    return texts


def _require_few_spans(texts: Sequence[WindowedText], limits: _Limits) -> None:
    """Raises: InvalidRequest for more spans than a request may have."""
    num_windows = sum(text.num_windows(limits.stride) for text in texts)
    num_spans = num_windows * min(limits.num_spans, limits.max_window_tokens**2)
    if num_spans > _MAX_SPANS:
        raise InvalidRequest(
            f"'parameters.top_k' asks for {num_spans} answers of {num_windows} windows, more than {_MAX_SPANS}.",
            param="parameters.top_k",
        )


def _require_inputs(inputs: Sequence[encoder_pb2.QuestionInContext]) -> None:
    """Raises: InvalidRequest for none, or one with an empty text."""
    if not inputs:
        raise InvalidRequest("'inputs' needs at least one question.", param="inputs")
    for index, one in enumerate(inputs):
        for name, text in (("question", one.question), ("context", one.context)):
            if not text:
                raise InvalidRequest(f"'inputs[{index}].{name}' is an empty text.", param="inputs")


def _chosen(given: Mapping[str, int], name: str, default: int, *, least: int = 1, most: int | None = None) -> int:
    """A parameter. Raises: InvalidRequest for one that is out of its range."""
    value = given.get(name, default)
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"at least {least} and at most {most}"
        raise InvalidRequest(f"'parameters.{name}' must be {limits}.", param=f"parameters.{name}")
    return value
