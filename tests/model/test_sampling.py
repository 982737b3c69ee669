"""The sampler against its definition: filters over a sorted distribution, one number a token."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import StepError
from model.sampling import LEAST_LOGPROB, Draw, SampledRow, Sampler, SamplingParams, TokenMask, token_mask, uniform

SEEDS = st.integers(-(2**63), 2**63 - 1)


def draw(scores: Sequence[float], p: SamplingParams, position: int, *, grammar: TokenMask | None = None) -> Draw:
    """Of a sequence without a prompt, with so many zeros as its output."""
    return Sampler()(torch.tensor([list(scores)]), [SampledRow(p, [0] * position, 0, grammar)])[0]


def expected_chances(scores: Sequence[float], p: SamplingParams) -> dict[int, float]:
    """Each token that may be drawn with its chance, the likeliest first: written out for one row of Python floats."""
    most = max(scores)
    weights = {i: math.exp((x - most) / p.temperature) for i, x in enumerate(scores) if x > -math.inf}
    order = sorted(weights, key=lambda i: (-scores[i], i))
    if p.top_k > 0:
        order = order[: p.top_k]
    if p.min_p > 0:
        order = [i for i in order if weights[i] >= p.min_p]
    total = sum(weights[i] for i in order)
    before = list(itertools.accumulate((weights[i] for i in order), initial=0.0))
    if p.top_p < 1:
        order = [i for i, sum_before in zip(order, before, strict=False) if sum_before < p.top_p * total]
        total = sum(weights[i] for i in order)
    return {i: weights[i] / total for i in order}


def expected_token(scores: Sequence[float], p: SamplingParams, position: int) -> int:
    point = uniform(p.seed, p.choice, position)
    reached = 0.0
    for token, chance in expected_chances(scores, p).items():
        reached += chance
        if point < reached:
            return token
    return token


@settings(max_examples=300, deadline=None)
@given(
    scores=st.lists(st.integers(-40, 40).map(lambda n: n / 4), min_size=1, max_size=400),
    temperature=st.sampled_from([0.2, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 3, 40, 300]),
    # No sums of equal shares, where rounding alone decides whether the edge is inside.
    top_p=st.sampled_from([1.0, 0.9531, 0.5171, 0.0137]),
    min_p=st.sampled_from([0.0, 0.0513, 0.7171]),
    seed=SEEDS,
    position=st.integers(0, 5000),
)
def test_equals_its_definition(
    scores: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int, position: int
) -> None:
    p = SamplingParams(temperature, seed, top_k, top_p, min_p)
    assert draw(scores, p, position) == Draw(expected_token(scores, p, position))


def test_greedy_takes_the_likeliest() -> None:
    scores_LV = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    drawn = Sampler()(scores_LV, [SampledRow(SamplingParams(0, 1), [3], 1)] * 5)
    assert drawn == [Draw(token) for token in scores_LV.argmax(1).tolist()]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    scores_LV = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))
    rows = [SampledRow(SamplingParams(0.0 if i % 3 == 0 else 0.8, i, top_p=0.9), [0] * i, 0) for i in range(8)]
    together = Sampler()(scores_LV, rows)
    assert together == [Sampler()(scores_LV[i : i + 1], rows[i : i + 1])[0] for i in range(8)]


ALONE = {
    "temperature": SamplingParams(1.0, 3),
    "a low temperature": SamplingParams(0.4, 3),
    "a high temperature": SamplingParams(2.0, 3),
    "top_k": SamplingParams(1.0, 3, top_k=7),
    "top_p": SamplingParams(1.0, 3, top_p=0.83),
    "min_p": SamplingParams(1.0, 3, min_p=0.13),
}
COMBINED = {
    f"{temperature} {top_k} {top_p} {min_p}": SamplingParams(temperature, 5, top_k, top_p, min_p)
    for temperature, top_k, top_p, min_p in itertools.product([0.7, 1.5], [0, 9], [1.0, 0.71], [0.0, 0.07])
}


@pytest.mark.parametrize("p", [*ALONE.values(), *COMBINED.values()], ids=[*ALONE, *COMBINED])
def test_frequencies_follow_the_distribution(p: SamplingParams) -> None:
    """Pearson's chi-square over the positions of one output; its seed is fixed, so it passes always or never."""
    num_positions = 4000
    scores = (torch.randn(40, generator=torch.Generator().manual_seed(1)) * 1.5).tolist()
    chances = expected_chances(scores, p)
    drawn = Counter(draw(scores, p, position).token for position in range(num_positions))
    assert set(drawn) <= set(chances)
    # What is rare is counted together.
    rare = [token for token, chance in chances.items() if chance * num_positions < 5]
    cells = [([token], chance) for token, chance in chances.items() if token not in rare]
    if rare:
        cells.append((rare, sum(chances[token] for token in rare)))
    statistic = sum(
        (sum(drawn[token] for token in tokens) - chance * num_positions) ** 2 / (chance * num_positions)
        for tokens, chance in cells
    )
    freedom = len(cells) - 1
    assert freedom > 0
    # Wilson and Hilferty's approximation of the distribution's 99.9th percentile.
    spread = 2 / (9 * freedom)
    assert statistic < freedom * (1 - spread + 3.09 * math.sqrt(spread)) ** 3


@pytest.mark.parametrize("temperature", [1e-300, 1e-308, 5e-324])
def test_the_smallest_temperatures_take_the_likeliest(temperature: float) -> None:
    assert draw([30.0, -40.0, 30.5, 29.0], SamplingParams(temperature, 7), 0).token == 2


def test_penalties_are_the_documented_ones() -> None:
    """Tokens 0 and 1 stand in the prompt, 1 once and 2 three times in the output; seen by what must be added to win."""
    p = {"repetition_penalty": 2.0, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    scores = [4.0, 4.0, -1.0, 0.0]
    after = [2.0, 2.0 - 0.75, -2.0 - 1.25, 0.0]
    for token, score in enumerate(after):
        needed = max(after) - score
        for extra, is_enough in ((0.01, True), (-0.01, token == 0)):
            bias = ((token, needed + extra),) if token else ()
            row = SampledRow(SamplingParams(0, 1, logit_bias=bias, **p), [0, 1, 1, 2, 2, 2], 2)
            (found,) = Sampler()(torch.tensor([scores]), [row])
            assert (found.token == token) == (is_enough if token else True)


def test_a_bias_is_added_before_the_temperature() -> None:
    p = SamplingParams(0.5, 9, logit_bias=((0, 1.0), (2, -0.5)))
    for position in range(200):
        assert draw([0.0, 1.0, 1.5], p, position).token == expected_token([1.0, 1.0, 1.0], p, position)


def test_stops_can_not_come_before_the_minimum() -> None:
    p = SamplingParams(0, 1, min_tokens=3, stop_ids=(1, 2))
    assert [draw([0.0, 9.0, 8.0], p, position).token for position in range(5)] == [0, 0, 0, 1, 1]


@given(st.sets(st.integers(0, 69), min_size=1), st.sets(st.integers(0, 69), min_size=1), SEEDS)
def test_only_what_parameters_and_grammar_allow_is_drawn(mine: set[int], grammar: set[int], seed: int) -> None:
    p = SamplingParams(1.0, seed, allowed=token_mask(sorted(mine), 70))
    scores = [0.0] * 70
    if mine & grammar:
        assert draw(scores, p, 0, grammar=token_mask(sorted(grammar), 70)).token in mine & grammar
    else:
        with pytest.raises(StepError, match="no token may be drawn in row 0"):
            draw(scores, p, 0, grammar=token_mask(sorted(grammar), 70))
    assert draw(scores, p, 0).token in mine


def test_log_probabilities_are_the_model_s_own() -> None:
    """Whatever else changes the draw; equal ones by their ids."""
    scores = [1.0, 3.0, 3.0, 0.0]
    expected = torch.tensor(scores).double().log_softmax(0).tolist()
    p = SamplingParams(0.1, 1, top_k=1, logit_bias=((3, 50.0),), top_logprobs=2, presence_penalty=1.0)
    found = draw(scores, p, 1)
    assert found.token == 3
    assert found.logprob == pytest.approx(expected[3], abs=1e-12)
    assert found.top == ((1, pytest.approx(expected[1])), (2, pytest.approx(expected[2])))
    assert draw(scores, SamplingParams(0, 1, top_logprobs=0), 0) == Draw(1, pytest.approx(expected[1]))
    assert draw(scores, SamplingParams(0, 1), 0) == Draw(1)
    assert len(draw(scores, SamplingParams(0, 1, top_logprobs=9), 0).top) == 4


def test_a_given_token_is_told_about() -> None:
    scores_LV = torch.tensor([[1.0, -math.inf, 2.0]])
    rows = [SampledRow(SamplingParams(1.0, 1, top_logprobs=3), [5], 1, given=given) for given in (0, 1)]
    chosen, impossible = (Sampler()(scores_LV, [row])[0] for row in rows)
    assert (chosen.token, chosen.logprob) == (0, pytest.approx(-math.log1p(math.e)))
    assert (impossible.token, impossible.logprob) == (1, LEAST_LOGPROB)
    assert [token for token, _ in impossible.top] == [2, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_without_numbers_is_an_error_that_names_it(bad: float) -> None:
    scores_LV = torch.zeros(3, 8)
    scores_LV[1, 5] = bad
    with pytest.raises(StepError, match="row 1 of the scores has no largest number"):
        Sampler()(scores_LV, [SampledRow(SamplingParams(0, 1), [1], 1)] * 3)
    with pytest.raises(StepError, match="row 0"):
        Sampler()(torch.full((1, 8), -math.inf), [SampledRow(SamplingParams(0, 1), [1], 1)])


def test_what_needs_no_scores_is_the_likeliest() -> None:
    plain = SamplingParams(0, 1, min_tokens=2, stop_ids=(4,))
    assert [plain.needs_scores(position) for position in range(4)] == [True, True, False, False]
    changes = (
        {"temperature": 0.5},
        {"top_logprobs": 0},
        {"presence_penalty": -1.0},
        {"frequency_penalty": 1.0},
        {"repetition_penalty": 0.9},
        {"logit_bias": ((1, 2.0),)},
        {"allowed": token_mask([1], 4)},
    )
    for change in changes:
        assert SamplingParams(**{"temperature": 0.0, "seed": 1, **change}).needs_scores(0)
    assert not SamplingParams(0, 1, top_k=3, top_p=0.5, min_p=0.1).needs_scores(0)
    assert SampledRow(plain, [0] * 9, 1, grammar=token_mask([1], 4)).needs_scores
    assert SampledRow(plain, [0] * 9, 1, given=3).needs_scores


@given(st.sets(st.integers(0, 99)))
def test_a_mask_has_a_bit_for_each_token(token_ids: set[int]) -> None:
    mask = token_mask(sorted(token_ids), 100)
    assert (mask.dtype, len(mask)) == (numpy.uint32, 4)
    assert {t for t in range(128) if mask[t // 32] >> numpy.uint32(t % 32) & 1} == token_ids


@given(seed=SEEDS, choice=st.integers(0, 100), position=st.integers(0, 10**6))
def test_uniform_is_a_number_below_one(seed: int, choice: int, position: int) -> None:
    value = uniform(seed, choice, position)
    assert 0 <= value < 1
    assert value == uniform(seed, choice, position)


def test_uniform_parts_are_told_apart() -> None:
    values = {uniform(seed, choice, position) for seed in range(10) for choice in range(10) for position in range(10)}
    assert len(values) == 1000
