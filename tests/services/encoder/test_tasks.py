"""The arithmetic of tasks: scores, labels, vectors, inputs that don't fit."""

import math
import time
from collections.abc import Sequence
from typing import Literal

import numpy
import pytest

from janus.v1 import common_pb2, encoder_pb2
from services.common.errors import ContextLengthExceeded, InvalidRequest
from services.encoder.tasks.classify import ClassifyText
from services.encoder.tasks.embed import EmbedText
from services.encoder.tasks.inputs import encode_pairs, require_readable
from services.encoder.tasks.labels import Labels, UnknownLabels
from services.encoder.tasks.question import AnswerQuestion
from services.encoder.tasks.rerank import RerankTexts
from services.encoder.tasks.task import Head
from services.encoder.tasks.tokens import ClassifyTokens
from services.encoder.tasks.zero_shot import ClassifyZeroShot

HEAD = Head(None, labels=Labels(("a", "b", "c"), "none"), width=3)


@pytest.mark.parametrize(
    ("names", "problem_type", "function"),
    [
        (["a", "b"], None, "softmax"),
        (["a", "b"], "single_label_classification", "softmax"),
        (["a", "b"], "multi_label_classification", "sigmoid"),
        (["a"], None, "sigmoid"),
        (["a"], "regression", "none"),
    ],
)
def test_how_scores_become_answers(names: list[str], problem_type: str | None, function: str) -> None:
    assert Labels.of(names, problem_type).function == function


def test_labels_of_a_checkpoint() -> None:
    named = {"id2label": {"1": "b", "0": "a"}, "problem_type": "multi_label_classification"}
    assert Labels.of_checkpoint(named, 2) == Labels(("a", "b"), "sigmoid")
    assert Labels.of_checkpoint({"id2label": None}, 3) == Labels(("LABEL_0", "LABEL_1", "LABEL_2"), "softmax")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": {"a": "x", "b": "y"}}, "does not name the labels 0 to 1"),
        ({"id2label": {"0": "x", "2": "y"}}, "does not name the labels 0 to 1"),
        ({"id2label": ["x", "y"]}, "does not name the labels 0 to 1"),
        ({"id2label": {"0": 1, "1": 2}}, "a name that is no text"),
        ({"problem_type": "nonsense"}, "problem_type 'nonsense' is not served"),
        ({"problem_type": ["regression"]}, "is not served"),
    ],
)
def test_labels_that_can_not_be_told(config: dict[str, object], message: str) -> None:
    with pytest.raises(UnknownLabels, match=message):
        Labels.of_checkpoint(config, 2)


def classify(*inputs: str, truncate: bool = False, **parameters: int) -> encoder_pb2.ClassifyTextRequest:
    chosen = encoder_pb2.ClassifyTextParameters(**parameters)
    return encoder_pb2.ClassifyTextRequest(inputs=inputs, parameters=chosen, truncate=truncate)


def embed(*inputs: str | list[int], **options: int) -> encoder_pb2.EmbedTextRequest:
    def one(given: str | list[int]) -> encoder_pb2.EmbedTextInput:
        if isinstance(given, str):
            return encoder_pb2.EmbedTextInput(text=given)
        return encoder_pb2.EmbedTextInput(tokens=common_pb2.TokenIds(ids=given))

    return encoder_pb2.EmbedTextRequest(input=[one(given) for given in inputs], **options)


def test_best_first_and_top_k() -> None:
    def told(**parameters: int) -> list[tuple[str, float]]:
        [result] = ClassifyText().decode(classify("x", **parameters), HEAD, [[numpy.array([1.0, 3.0, 2.0])]]).results
        return [(one.label, one.score) for one in result.labels]

    assert told() == [("b", 3.0), ("c", 2.0), ("a", 1.0)]
    assert told(top_k=1) == [("b", 3.0)]
    assert len(told(top_k=9)) == 3
    assert told(function_to_apply=encoder_pb2.FUNCTION_TO_APPLY_SOFTMAX)[0] == ("b", pytest.approx(0.6652409))


def test_functions_do_not_overflow() -> None:
    labels = Labels(("a", "b"), "softmax")
    far, near = numpy.array([[1000.0, -1000.0]]), numpy.array([[0.0, math.log(3)]])
    assert labels.ranked(far) == [[("a", 1.0), ("b", 0.0)]]
    assert labels.ranked(far, "sigmoid") == [[("a", 1.0), ("b", 0.0)]]
    assert labels.ranked(near) == [[("b", pytest.approx(0.75)), ("a", pytest.approx(0.25))]]
    assert labels.ranked(near, "sigmoid") == [[("b", pytest.approx(0.75)), ("a", 0.5)]]


def test_equal_scores_keep_the_order_of_the_head() -> None:
    labels = Labels(tuple("abcdef"), "none")
    [ranked] = labels.ranked(numpy.array([[1.0, 3.0, 1.0, 3.0, 2.0, 1.0]]), top_k=5)
    assert [name for name, _ in ranked] == ["b", "d", "e", "a", "c"]


def test_the_largest_answers_are_made_at_once() -> None:
    """On the event loop: 4,096 vectors that are shortened, 4,096 texts with a score for each of 28 labels."""
    random = numpy.random.default_rng(0)
    vectors = [[one] for one in random.standard_normal((4096, 384), dtype=numpy.float32)]
    logits = [[one] for one in random.standard_normal((4096, 28), dtype=numpy.float32)]
    head = Head(None, labels=Labels(tuple(f"label-{number}" for number in range(28)), "softmax"), width=384)
    started = time.process_time()
    EmbedText().decode(embed("x", dimensions=256), head, vectors)
    between = time.process_time()
    ClassifyText().decode(classify("x"), head, logits)
    assert between - started < 0.5
    assert time.process_time() - between < 0.5


def test_a_shorter_vector_has_length_one_again() -> None:
    def vectors(**options: int) -> list[list[float]]:
        answer = EmbedText().decode(
            embed("x", **options), HEAD, [[numpy.array(v)] for v in ([0.6, 0.0, 0.8], [0.0, 1.0, 0.0])]
        )
        return [list(one.values) for one in answer.embeddings]

    assert vectors() == [pytest.approx([0.6, 0.0, 0.8]), [0.0, 1.0, 0.0]]
    assert vectors(dimensions=3) == vectors()
    assert vectors(dimensions=1) == [[1.0], [0.0]]


class Words:
    """What a tokenizer with a token a word makes of a text."""

    def __init__(self, num_words: int) -> None:
        self.ids = [1] * num_words
        self.type_ids = [0] * num_words
        self.special_mask = self.text_numbers = [0] * num_words

    def __len__(self) -> int:
        return len(self.ids)


class WordEncoder:
    """A token a word, at most 5."""

    max_input_tokens = 5
    vocabulary_size = 100
    special_ids = frozenset[int]()

    @property
    def tokenizer(self) -> "WordEncoder":
        return self

    def encode_batch(self, texts: Sequence[str]) -> list[Words]:
        return [Words(len(text.split())) for text in texts]

    def encode_within(self, max_tokens: int, text: str) -> Words:
        return Words(min(max_tokens, len(text.split())))


async def test_inputs_that_do_not_fit() -> None:
    encoder, task = WordEncoder(), ClassifyText()
    fine = await task.encode(classify("a b", "c"), HEAD, encoder)
    assert ([one.num_tokens for [one] in fine.items], fine.num_tokens, fine.is_truncated) == ([2, 1], 3, False)
    with pytest.raises(ContextLengthExceeded, match=r"'inputs.1.' has 7 tokens, the model takes 5") as refused:
        await task.encode(classify("a", "a " * 7), HEAD, encoder)
    assert refused.value.param == "inputs"
    cut = await task.encode(classify("a", "a " * 7, truncate=True), HEAD, encoder)
    assert ([one.num_tokens for [one] in cut.items], cut.is_truncated) == ([1, 5], True)


class Reader(WordEncoder):
    """Notes how long the texts are that it reads."""

    def __init__(self) -> None:
        self.num_read: list[int] = []

    def encode_batch(self, texts: Sequence[str]) -> list[Words]:
        self.num_read += map(len, texts)
        return super().encode_batch(texts)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Words]:
        return self.encode_batch([" ".join(pair) for pair in pairs])

    def num_special_tokens(self, *, is_pair: bool) -> int:
        return 0


async def test_a_text_that_is_far_too_long_is_refused_unread() -> None:
    encoder, task, long = Reader(), ClassifyText(), "x" * 65_537
    message = r"'inputs.1.' has 65537 characters, of a text for 5 tokens at most 65536 are read"
    with pytest.raises(ContextLengthExceeded, match=message) as refused:
        await task.encode(classify("a", long), HEAD, encoder)
    assert (refused.value.param, encoder.num_read) == ("inputs", [])
    fine = await task.encode(classify(long[1:]), HEAD, encoder)
    assert (fine.is_truncated, encoder.num_read) == (False, [65_536])


async def test_of_a_text_that_is_far_too_long_the_beginning_is_read_where_it_may_be_cut() -> None:
    encoder = Reader()
    cut = await ClassifyText().encode(classify("a", "x" * 10**7, truncate=True), HEAD, encoder)
    assert ([one.num_tokens for [one] in cut.items], cut.is_truncated) == ([1, 1], True)
    assert encoder.num_read == [1, 65_536]


@pytest.mark.parametrize(
    ("cut", "pair", "num_read"),
    [
        ("longest", ("a", "x" * 10**6), 1 + 1 + 65_536),
        ("longest", ("x" * 10**6, "a"), 1 + 1 + 65_536),
        ("first", ("x" * 10**6, "a"), 1 + 1 + 65_536),
        ("first", ("a", "x" * 10**6), None),
    ],
)
async def test_of_two_texts_only_what_may_be_cut_is(
    cut: Literal["first", "longest"], pair: tuple[str, str], num_read: int | None
) -> None:
    for may_truncate in (False, True):
        encoder = Reader()
        encoding = encode_pairs(encoder, [pair], names=["x"], param="x", cut=cut, may_truncate=may_truncate)
        if may_truncate and num_read is not None:
            assert (await encoding).is_truncated
            assert encoder.num_read == [num_read]
        else:
            with pytest.raises(ContextLengthExceeded, match="'x' has 1000001 characters"):
                await encoding
            assert not encoder.num_read


@pytest.mark.parametrize("truncate", [False, True])
async def test_texts_that_stand_in_many_pairs_have_a_bound_too(truncate: bool) -> None:
    encoder, long = Reader(), "x" * 64_000
    ranked = encoder_pb2.RerankTextsRequest(query=long, documents=["a"] * 4096, truncate=truncate)
    of_labels = encoder_pb2.ClassifyZeroShotParameters(candidate_labels=["a"] * 4096)
    by_label = encoder_pb2.ClassifyZeroShotRequest(inputs=[long], parameters=of_labels, truncate=truncate)
    templates = encoder_pb2.ClassifyZeroShotParameters(candidate_labels=["a"] * 4096, hypothesis_template=long + "{}")
    by_template = encoder_pb2.ClassifyZeroShotRequest(inputs=["a"], parameters=templates, truncate=truncate)
    for task, request, param in (
        (RerankTexts(), ranked, "documents"),
        (ClassifyZeroShot(), by_label, "inputs"),
        (ClassifyZeroShot(), by_template, "inputs"),
    ):
        started = time.perf_counter()
        with pytest.raises(InvalidRequest, match=f"'{param}' make pairs of 262.* characters in all") as refused:
            await task.encode(request, HEAD, encoder)
        assert time.perf_counter() - started < 0.1
        assert (refused.value.param, encoder.num_read) == (param, [])
    pairs = [(long, "a")] * 65
    fine = await encode_pairs(encoder, pairs, names=["x"] * 65, param="x", cut="longest", may_truncate=truncate)
    assert len(fine.encodings) == len(encoder.num_read) == 65


async def test_long_texts_that_are_read_in_windows_have_a_bound_of_their_own() -> None:
    encoder, long, short = Reader(), "x" * 2**20, "x" * 2**16
    question = encoder_pb2.QuestionInContext(question="a", context=long)
    parameters = encoder_pb2.ClassifyTokensParameters(
        stride=1, aggregation_strategy=encoder_pb2.AGGREGATION_STRATEGY_SIMPLE
    )
    tokens = encoder_pb2.ClassifyTokensRequest(inputs=[long] * 3, parameters=parameters)
    for task, request in (
        (AnswerQuestion(), encoder_pb2.AnswerQuestionRequest(inputs=[question] * 3)),
        (ClassifyTokens(), tokens),
    ):
        with pytest.raises(InvalidRequest, match="'inputs' have long texts of 3145728 characters in all, more than"):
            await task.encode(request, HEAD, encoder)
    assert not encoder.num_read
    require_readable(encoder, [long, long, *[short] * 99])


async def test_given_tokens_are_cut_before_their_last_special_one() -> None:
    encoder = WordEncoder()
    cut = await EmbedText().encode(embed([1] * 6 + [9], truncate=True), HEAD, encoder)
    assert ([one.token_ids for [one] in cut.items], cut.is_truncated) == ([[1] * 5], True)
    encoder.special_ids = frozenset({9})
    cut = await EmbedText().encode(embed([1] * 6 + [9], truncate=True), HEAD, encoder)
    assert [one.token_ids for [one] in cut.items] == [[1, 1, 1, 1, 9]]


async def test_given_tokens_are_taken_as_they_are() -> None:
    given = await EmbedText().encode(embed([1, 99], [7]), HEAD, WordEncoder())
    assert [one.token_ids for [one] in given.items] == [[1, 99], [7]]
    with pytest.raises(ContextLengthExceeded, match=r"'input.0.' has 6 tokens, the model takes 5"):
        await EmbedText().encode(embed([1] * 6), HEAD, WordEncoder())


async def test_given_tokens_are_counted_before_they_are_looked_at() -> None:
    many = embed([1] * 2**22 + [100])
    started = time.perf_counter()
    with pytest.raises(ContextLengthExceeded, match=r"'input.0.' has 4194305 tokens, the model takes 5"):
        await EmbedText().encode(many, HEAD, WordEncoder())
    many.truncate = True
    cut = await EmbedText().encode(many, HEAD, WordEncoder())
    assert time.perf_counter() - started < 0.1
    assert ([one.token_ids for [one] in cut.items], cut.is_truncated) == ([[1] * 5], True)


@pytest.mark.parametrize(
    ("task", "request_", "param"),
    [
        (ClassifyText(), classify(), "inputs"),
        (ClassifyText(), classify("a", ""), "inputs"),
        (ClassifyText(), classify("a", " "), "inputs"),
        (ClassifyText(), classify("a", top_k=0), "parameters.top_k"),
        (ClassifyText(), classify("a", top_k=-1), "parameters.top_k"),
        (ClassifyText(), classify("a", function_to_apply=9), "parameters.function_to_apply"),
        (EmbedText(), embed(), "input"),
        (EmbedText(), embed("a", ""), "input"),
        (EmbedText(), embed("a", [1]), "input"),
        (EmbedText(), embed([]), "input"),
        (EmbedText(), embed("a", " "), "input"),
        (EmbedText(), embed([1], [100]), "input"),
        (EmbedText(), embed([-1]), "input"),
        (EmbedText(), embed("a", dimensions=0), "dimensions"),
        (EmbedText(), embed("a", dimensions=-1), "dimensions"),
        (EmbedText(), embed("a", dimensions=4), "dimensions"),
    ],
)
async def test_refusals_name_the_field(task: ClassifyText | EmbedText, request_: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await task.encode(request_, HEAD, WordEncoder())
    assert refused.value.param == param
