"""Options as asked: defaults filled in, every wrong value refused by its field's name."""

import pytest

from janus.v1 import common_pb2, decoder_pb2
from services.common.errors import ContextLengthExceeded, InvalidRequest
from services.decoder.options import Capacity, Defaults, Plan, plan

CAPACITY = Capacity(max_context_tokens=100, max_cache_tokens=80, vocabulary_size=50)
DEFAULTS = Defaults(max_tokens=30, temperature=0.2, top_p=0.9, top_k=0)


def planned(num_prompt_tokens: int = 10, **fields: object) -> Plan:
    options = decoder_pb2.GenerationOptions(**fields)
    return plan(
        options,
        num_prompt_tokens=num_prompt_tokens,
        prompt_param="messages",
        capacity=CAPACITY,
        defaults=DEFAULTS,
        end_ids=frozenset({2}),
    )


def test_defaults() -> None:
    made = planned()
    assert (made.max_tokens, made.temperature, made.top_p, made.top_k, made.min_p) == (30, 0.2, 0.9, 0, 0)
    assert made.stop_ids == {2}
    assert 0 <= made.seed < 2**63
    assert made.seed != planned().seed


def test_what_is_asked_counts() -> None:
    made = planned(max_tokens=7, temperature=0, top_p=1, seed=-5, stop=["a"], stop_token_ids=[3], ignore_eos=True)
    assert (made.max_tokens, made.temperature, made.top_p, made.seed) == (7, 0, 1, -5)
    assert made.stop_ids == {3}
    assert made.stop_strings == ("a",)


def test_the_default_length_is_what_is_left() -> None:
    assert planned(num_prompt_tokens=75).max_tokens == 5


@pytest.mark.parametrize("num_prompt_tokens", [80, 81, 100, 5000])
def test_a_prompt_that_leaves_no_room(num_prompt_tokens: int) -> None:
    with pytest.raises(ContextLengthExceeded, match=rf"{num_prompt_tokens} tokens.* 79") as refused:
        planned(num_prompt_tokens=num_prompt_tokens)
    assert refused.value.param == "messages"


def test_an_answer_that_does_not_fit() -> None:
    with pytest.raises(ContextLengthExceeded, match=r"75 tokens.*asks for 6.*80") as refused:
        planned(num_prompt_tokens=75, max_tokens=6)
    assert refused.value.param == "max_tokens"


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("min_tokens", -1),
        ("min_tokens", 31),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", float("inf")),
        ("stop", [""]),
        ("stop", ["x" * 1001]),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("stop_token_ids", [50]),
        ("stop_token_ids", [-1]),
        ("output_token_ids", [common_pb2.TokenIds(ids=[50])]),
        ("output_token_ids", [common_pb2.TokenIds(ids=[1] * 31)]),
        ("output_token_ids", [common_pb2.TokenIds(), common_pb2.TokenIds()]),
        ("n", 0),
        ("n", 129),
        ("n", 10_000),
        ("repetition_penalty", 0),
        ("repetition_penalty", 0.009),
        ("repetition_penalty", 101),
        ("repetition_penalty", float("inf")),
        ("repetition_penalty", float("nan")),
        ("presence_penalty", 2.1),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", -2.1),
        ("logit_bias", {50: 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {3: 100.5}),
        ("logit_bias", {3: float("nan")}),
        ("allowed_token_ids", common_pb2.TokenIds()),
        ("allowed_token_ids", common_pb2.TokenIds(ids=[50])),
        ("top_logprobs", 1),
    ],
)
def test_wrong_values(param: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        planned(**{param: value})
    assert refused.value.param == param


def test_what_is_drawn_and_told_as_asked() -> None:
    made = planned(
        n=3,
        repetition_penalty=1.5,
        presence_penalty=-2,
        frequency_penalty=2,
        logit_bias={7: -100, 3: 2.5},
        allowed_token_ids=common_pb2.TokenIds(ids=[4, 1, 4]),
        logprobs=True,
        top_logprobs=20,
    )
    assert (made.repetition_penalty, made.presence_penalty, made.frequency_penalty) == (1.5, -2, 2)
    assert (made.logit_bias, made.allowed_token_ids, made.top_logprobs) == (((3, 2.5), (7, -100)), (1, 4), 20)
    assert made.output_token_ids == ((), (), ())
    plain = planned()
    assert (plain.repetition_penalty, plain.presence_penalty, plain.frequency_penalty) == (1, 0, 0)
    assert (plain.logit_bias, plain.allowed_token_ids, plain.top_logprobs) == ((), None, None)
    assert planned(logprobs=True).top_logprobs == 0


def test_more_than_twenty_beside_a_token() -> None:
    with pytest.raises(InvalidRequest) as refused:
        planned(logprobs=True, top_logprobs=21)
    assert refused.value.param == "top_logprobs"


def test_only_stops_are_no_choice_before_the_minimum() -> None:
    assert planned(allowed_token_ids=common_pb2.TokenIds(ids=[2])).allowed_token_ids == (2,)
    with pytest.raises(InvalidRequest) as refused:
        planned(allowed_token_ids=common_pb2.TokenIds(ids=[2]), min_tokens=1)
    assert refused.value.param == "allowed_token_ids"


def test_stops_that_are_all_tokens_leave_none_before_the_minimum() -> None:
    """A draw without a token to take would fail the step, and with it all others in the batch."""
    assert planned(stop_token_ids=range(50)).stop_ids == {*range(50)}
    for stops in (range(50), [i for i in range(50) if i != 2]):
        with pytest.raises(InvalidRequest) as refused:
            planned(stop_token_ids=stops, min_tokens=1)
        assert refused.value.param == "stop_token_ids"
    assert planned(stop_token_ids=range(49), min_tokens=1).min_tokens == 1


@pytest.mark.parametrize("penalty", [0.01, 100])
def test_the_last_repetition_penalties_that_may_be(penalty: float) -> None:
    assert planned(repetition_penalty=penalty).repetition_penalty == penalty


def test_an_echo_alone_writes_nothing() -> None:
    assert planned(max_tokens=0, echo=True).max_tokens == 0
    assert planned(80, max_tokens=0, echo=True).max_tokens == 0
    with pytest.raises(ContextLengthExceeded):
        planned(81, max_tokens=0, echo=True)


def test_choices_go_on_from_their_own_tokens() -> None:
    given = [common_pb2.TokenIds(ids=[4, 5]), common_pb2.TokenIds()]
    assert planned(n=2, output_token_ids=given).output_token_ids == ((4, 5), ())
