"""The native sampler draws the tokens of the plain one: every variant, any row, in any company."""

import math
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.errors import StepError
from model.kernels.native.library import ThreadPlan, native_library
from model.kernels.native.sampler import NativeSampler
from model.sampling import LEAST_LOGPROB, Draw, SampledRow, Sampler, SamplingParams, TokenMask, token_mask

VARIANTS = native_library().kernel_names()
BIASES = st.lists(st.tuples(st.integers(0, 2**20), st.floats(-100, 100, width=32)), max_size=6)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(native_library(), "variant", request.param)
    return request.param


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    plan = native_library().plan
    native_library().use_threads(ThreadPlan(2))
    yield
    native_library().use_threads(plan)


def scores_of(kind: str, vocabulary: int, seed: int) -> Tensor:
    """Shape: `[V]`. `steps` has many equal scores, `peaked` a few that count, `masked` few that are any."""
    generator = torch.Generator().manual_seed(seed)
    scores_V = torch.randn(vocabulary, generator=generator)
    match kind:
        case "steps":
            return (scores_V * 6).round() / 4
        case "peaked":
            return scores_V * 3 + 12 * (torch.rand(vocabulary, generator=generator) > 0.999)
        case "masked":
            return torch.where(torch.rand(vocabulary, generator=generator) > 0.02, -math.inf, scores_V)
        case "equal":
            return torch.full((vocabulary,), float(scores_V[0]))
    return scores_V * 0.3


@st.composite
def rows(draw: st.DrawFn, vocabulary: int) -> tuple[Tensor, SampledRow]:
    kind = draw(st.sampled_from(["flat", "steps", "peaked", "masked", "equal"]))
    scores_V = scores_of(kind, vocabulary, draw(st.integers(0, 2**31)))
    if not scores_V.isfinite().any():
        scores_V[draw(st.integers(0, vocabulary - 1))] = 0
    tokens = draw(st.lists(st.integers(0, vocabulary - 1), max_size=30))
    tokens += scores_V.topk(min(4, vocabulary)).indices.tolist() * draw(st.integers(0, 2))
    params = SamplingParams(
        temperature=draw(st.sampled_from([0.0, 1e-300, 0.1, 0.7, 1.0, 2.0])),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        top_k=draw(st.sampled_from([0, 0, 1, 2, 40, 700])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.9531, 0.5, 0.0137])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.0513, 0.7171, 1.0])),
        choice=draw(st.integers(0, 3)),
        min_tokens=draw(st.sampled_from([0, 10])),
        stop_ids=tuple(scores_V.topk(1).indices.tolist()) if vocabulary > 1 else (),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.7])),
        presence_penalty=draw(st.sampled_from([0.0, 0.7, -2.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.3, -1.1])),
        logit_bias=tuple({token % vocabulary: bias for token, bias in draw(BIASES)}.items()),
        allowed=draw(st.none() | st.sets(st.integers(0, vocabulary - 1), min_size=1).map(_mask(vocabulary))),
        top_logprobs=draw(st.sampled_from([None, 0, 1, 20])),
    )
    grammar = draw(st.none() | st.just(token_mask(range(0, vocabulary, 3), vocabulary)))
    given = draw(st.none() | st.none() | st.integers(0, vocabulary - 1))
    return scores_V, SampledRow(params, tokens, draw(st.integers(0, len(tokens))), grammar, given)


def _mask(vocabulary: int) -> Callable[[set[int]], TokenMask]:
    return lambda token_ids: token_mask(sorted(token_ids), vocabulary)


def outcome(sampler: Sampler | NativeSampler, scores_V: Tensor, row: SampledRow) -> Draw | str:
    try:
        return sampler(scores_V[None], [row])[0]
    except StepError as error:
        return str(error)


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_every_row_is_drawn_as_by_the_plain_sampler(name: str, data: st.DataObject) -> None:
    vocabulary = data.draw(st.sampled_from([1, 3, 31, 64, 65, 517, 5000]))
    scores_V, row = data.draw(rows(vocabulary))
    library = native_library()
    best, library.variant = library.variant, name
    try:
        found = outcome(NativeSampler(library, vocabulary), scores_V, row)
    finally:
        library.variant = best
    expected = outcome(Sampler(), scores_V, row)
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
        return
    assert found.token == expected.token
    assert found.logprob == (None if expected.logprob is None else pytest.approx(expected.logprob, abs=1e-9))
    assert [token for token, _ in found.top] == [token for token, _ in expected.top]
    assert [each for _, each in found.top] == pytest.approx([each for _, each in expected.top], abs=1e-9)


def test_whole_vocabularies_are_drawn_from_alike(variant: str) -> None:
    vocabulary = 49152
    native, plain = NativeSampler(native_library(), vocabulary), Sampler()
    chosen = random.Random(1)
    for seed, kind in enumerate(["flat", "steps", "peaked", "masked", "equal"]):
        scores_V = scores_of(kind, vocabulary, seed)
        params = [
            SamplingParams(0.7, chosen.getrandbits(62), top_k, top_p, min_p)
            for top_k in (0, 50, 9000)
            for top_p in (1.0, 0.95, 0.3)
            for min_p in (0.0, 0.02)
        ]
        drawn_from = scores_V.expand(len(params), -1).contiguous()
        sampled = [SampledRow(p, [7] * i, 0) for i, p in enumerate(params)]
        assert native(drawn_from, sampled) == plain(drawn_from, sampled)


def test_a_row_is_drawn_alike_in_any_company(variant: str) -> None:
    vocabulary = 3001
    scores_LV = torch.stack([scores_of("peaked", vocabulary, seed) for seed in range(40)])
    sampled = [
        SampledRow(SamplingParams(0.8, i, top_p=0.9, repetition_penalty=1.2, top_logprobs=3), list(range(i, 90)), 9)
        for i in range(40)
    ]
    native = NativeSampler(native_library(), vocabulary)
    together = native(scores_LV, sampled)
    assert together == [native(scores_LV[i : i + 1], sampled[i : i + 1])[0] for i in range(40)]
    backwards = native(scores_LV.flip(0).contiguous(), sampled[::-1])
    assert backwards[::-1] == together


def test_the_scores_are_left_as_they_are(variant: str) -> None:
    scores_LV = scores_of("flat", 700, 1)[None]
    before = scores_LV.clone()
    params = SamplingParams(1.0, 1, logit_bias=((3, 9.0),), frequency_penalty=1.0, allowed=token_mask(range(9), 700))
    NativeSampler(native_library(), 700)(scores_LV, [SampledRow(params, [1, 2, 3], 1)])
    assert torch.equal(scores_LV, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_without_numbers_is_an_error_that_names_it(variant: str, bad: float) -> None:
    native = NativeSampler(native_library(), 130)
    scores_LV = torch.zeros(4, 130)
    scores_LV[2] = bad
    rows_of_it = [SampledRow(SamplingParams(0.5, 1), [1], 1)] * 4
    with pytest.raises(StepError, match="row 2 of the scores has no largest number"):
        native(scores_LV, rows_of_it)
    for place in (0, 63, 64, 127, 128, 129):
        scores_LV[2] = 0
        scores_LV[2, place] = bad
        if bad != -math.inf:
            with pytest.raises(StepError, match="row 2"):
                native(scores_LV, rows_of_it)
    # The others are drawn when they come without it.
    assert len(native(scores_LV[:2], rows_of_it[:2])) == 2


def test_what_has_no_chance_is_told_as_a_number(variant: str) -> None:
    scores_LV = torch.tensor([[0.0, -math.inf]])
    row = SampledRow(SamplingParams(0, 1, top_logprobs=2), [1], 1, given=1)
    (found,) = NativeSampler(native_library(), 2)(scores_LV, [row])
    assert found == Draw(1, LEAST_LOGPROB, ((0, 0.0),))
