"""The arithmetic of tasks: scores, labels, vectors, inputs that don't fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from services.common.errors import ContextLengthExceeded, InvalidRequest
from services.encoder.tasks.classify import Labels, scored
from services.encoder.tasks.embed import check_dimensions, given_tokens, shortened
from services.encoder.tasks.inputs import encode_texts


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


def test_best_first_and_top_k() -> None:
    labels = Labels(("a", "b", "c"), "none")
    assert scored([1.0, 3.0, 2.0], labels, function=None, top_k=None) == [("b", 3.0), ("c", 2.0), ("a", 1.0)]
    assert scored([1.0, 3.0, 2.0], labels, function=None, top_k=1) == [("b", 3.0)]
    assert len(scored([1.0, 3.0, 2.0], labels, function=None, top_k=9)) == 3
    with pytest.raises(InvalidRequest):
        scored([1.0, 3.0, 2.0], labels, function=None, top_k=0)


def test_functions_do_not_overflow() -> None:
    labels = Labels(("a", "b"), "softmax")
    assert scored([1000.0, -1000.0], labels, function=None, top_k=None) == [("a", 1.0), ("b", 0.0)]
    assert scored([1000.0, -1000.0], labels, function="sigmoid", top_k=None) == [("a", 1.0), ("b", 0.0)]
    softmax = scored([0.0, math.log(3)], labels, function="softmax", top_k=None)
    assert softmax == [("b", pytest.approx(0.75)), ("a", pytest.approx(0.25))]


def test_a_shorter_vector_has_length_one_again() -> None:
    vector = [0.6, 0.0, 0.8]
    assert shortened(vector, None) is vector
    assert shortened(vector, 3) is vector
    assert shortened(vector, 1) == [1.0]
    assert shortened([0.0, 1.0], 1) == [0.0]
    for wrong in (0, -1, 4):
        with pytest.raises(InvalidRequest) as refused:
            check_dimensions(wrong, 3)
        assert refused.value.param == "dimensions"


def test_given_tokens_are_of_the_vocabulary() -> None:
    assert given_tokens([1, 2], 0, 3).ids == [1, 2]
    for wrong in ([], [3], [-1]):
        with pytest.raises(InvalidRequest) as refused:
            given_tokens(wrong, 0, 3)
        assert refused.value.param == "input"


@dataclass(frozen=True)
class Words:
    ids: list[int]
    type_ids: list[int]


class WordEncoder:
    """A token a word."""

    max_input_tokens = 5
    vocabulary_size = 100

    def encode_batch(self, texts: Sequence[str]) -> list[Words]:
        return [Words([1] * len(text.split()), [0] * len(text.split())) for text in texts]

    def truncated(self, tokens: Words) -> Words:
        return Words(tokens.ids[:5], tokens.type_ids[:5])


async def test_inputs_that_do_not_fit() -> None:
    encoder = WordEncoder()
    fine = await encode_texts(encoder, ["a b", "c"], None, param="inputs", may_truncate=False)
    assert ([one.num_tokens for one in fine.items], fine.num_tokens, fine.is_truncated) == ([2, 1], 3, False)
    with pytest.raises(ContextLengthExceeded, match=r"inputs.1. has 7 tokens, the model takes 5") as refused:
        await encode_texts(encoder, ["a", "a " * 7], None, param="inputs", may_truncate=False)
    assert refused.value.param == "inputs"
    cut = await encode_texts(encoder, ["a", "a " * 7], None, param="inputs", may_truncate=True)
    assert ([one.num_tokens for one in cut.items], cut.is_truncated) == ([1, 5], True)
    for wrong in ([], ["a", ""]):
        with pytest.raises(InvalidRequest) as empty:
            await encode_texts(encoder, wrong, None, param="input", may_truncate=False)
        assert empty.value.param == "input"
