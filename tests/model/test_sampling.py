"""The sampler against its definition: filters over a sorted distribution, one number a token."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.sampling import Sampler, SamplingParams, uniform

SEEDS = st.integers(-(2**63), 2**63 - 1)


def expected_token(logits: list[float], p: SamplingParams, position: int) -> int:
    """The same draw, written out for one row of Python floats."""
    weights = [math.exp((x - max(logits)) / p.temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: (-weights[i], i))
    if 0 < p.top_k < len(order):
        order = order[: p.top_k]
    total = sum(weights[i] for i in order)
    chances = [weights[i] / total for i in order]
    kept = [c for c in chances if c >= p.min_p * chances[0]] if p.min_p > 0 else chances
    remaining_total = sum(kept) if p.min_p > 0 else 1.0
    nucleus, before = 0, 0.0
    while nucleus < len(kept) and (p.top_p >= 1 or before < p.top_p * remaining_total):
        before += kept[nucleus]
        nucleus += 1
    point = uniform(p.seed, p.choice, position) * before
    reached = 0.0
    for i in range(nucleus):
        reached += kept[i]
        if point < reached:
            return order[i]
    return order[nucleus - 1]


@settings(max_examples=300, deadline=None)
@given(
    logits=st.lists(st.integers(-40, 40).map(lambda n: n / 4), min_size=1, max_size=400),
    temperature=st.sampled_from([0.2, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 3, 40, 300]),
    # No sums of equal shares, where rounding alone decides whether the edge is inside.
    top_p=st.sampled_from([1.0, 0.9531, 0.5171, 0.0137]),
    min_p=st.sampled_from([0.0, 0.0513, 0.7171]),
    seed=SEEDS,
    position=st.integers(0, 5000),
)
def test_equals_its_definition(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int, position: int
) -> None:
    p = SamplingParams(temperature, seed, top_k, top_p, min_p)
    assert Sampler()(torch.tensor([logits]), [p], [position]) == [expected_token(logits, p, position)]


def test_greedy_takes_the_likeliest() -> None:
    logits = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    assert Sampler()(logits, [SamplingParams(0, 1)] * 5, [0] * 5) == logits.argmax(1).tolist()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))
    params = [SamplingParams(0.0 if i % 3 == 0 else 0.8, seed=i, top_p=0.9) for i in range(8)]
    together = Sampler()(logits, params, list(range(8)))
    assert together == [Sampler()(logits[i : i + 1], [params[i]], [i])[0] for i in range(8)]


def test_frequencies_follow_the_distribution() -> None:
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05])
    drawn = Counter(Sampler()(chances.log()[None], [SamplingParams(1.0, seed=3)], [i])[0] for i in range(4000))
    for token, chance in enumerate(chances.tolist()):
        assert drawn[token] / 4000 == pytest.approx(chance, abs=0.03)


@given(seed=SEEDS, choice=st.integers(0, 100), position=st.integers(0, 10**6))
def test_uniform_is_a_number_below_one(seed: int, choice: int, position: int) -> None:
    value = uniform(seed, choice, position)
    assert 0 <= value < 1
    assert value == uniform(seed, choice, position)


def test_uniform_parts_are_told_apart() -> None:
    values = {uniform(seed, choice, position) for seed in range(10) for choice in range(10) for position in range(10)}
    assert len(values) == 1000


@pytest.mark.parametrize("temperature", [1e-300, 1e-308, 5e-324])
def test_the_smallest_temperatures_take_the_likeliest(temperature: float) -> None:
    logits_LV = torch.tensor([[30.0, -40.0, 30.5, 29.0]])
    params = [SamplingParams(temperature, seed=7)]
    assert Sampler()(logits_LV, params, [0]) == [2]
