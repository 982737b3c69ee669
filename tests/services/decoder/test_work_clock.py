"""What work costs, learned from steps of a machine that is known here: a fixed price, and one for each token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.decoder.work_clock import WorkClock


def taught(sizes: list[int], fixed: float = 0.020, each: float = 0.001, rounds: int = 30) -> WorkClock:
    clock = WorkClock()
    for _ in range(rounds):
        for num_tokens in sizes:
            clock.observe(num_tokens, fixed + each * num_tokens)
    return clock


def test_who_has_measured_nothing_knows_nothing() -> None:
    clock = WorkClock()
    assert (clock.seconds_for(5), clock.at_least(5), clock.tokens_within(1.0)) == (0.0, 0.0, 0)
    assert 1000 <= clock.wait_ms(10**6) <= 1500


def test_between_two_sizes_the_line_counts() -> None:
    clock = taught([8, 500])
    assert clock.seconds_for(100) == pytest.approx(0.120)
    assert clock.tokens_within(0.1201) == 100
    assert clock.at_least(100) == pytest.approx(0.120)


def test_beyond_the_largest_it_is_dear_and_never_promised() -> None:
    clock = taught([8])
    assert clock.seconds_for(80) == pytest.approx(0.280), "too dear: it is 0.1 s"
    assert clock.at_least(80) == pytest.approx(0.028), "too cheap: it is 0.1 s"


def test_a_budget_grows_to_its_time_in_a_few_steps() -> None:
    clock = taught([8])
    for _ in range(12):
        num_tokens = clock.tokens_within(0.1)
        clock.observe(num_tokens, 0.020 + 0.001 * num_tokens)
    assert clock.tokens_within(0.1) == pytest.approx(80, abs=4)


def test_it_follows_a_machine_that_becomes_slower() -> None:
    clock = taught([8, 64, 500])
    assert clock.tokens_within(0.1) == pytest.approx(80, abs=2)
    for _ in range(40):
        num_tokens = clock.tokens_within(0.1)
        clock.observe(num_tokens, 2 * (0.020 + 0.001 * num_tokens))
    num_tokens = clock.tokens_within(0.1)
    assert 2 * (0.020 + 0.001 * num_tokens) == pytest.approx(0.1, rel=0.2)


def test_the_pace_of_the_queue_is_that_of_the_last_steps() -> None:
    clock = taught([40])  # 40 tokens in 0.06 s
    assert 15_000 * 0.99 <= clock.wait_ms(10_000) <= 1.5 * 15_000 * 1.01
    assert 100 <= clock.wait_ms(1) <= 150


@given(st.lists(st.tuples(st.integers(1, 2000), st.floats(1e-4, 10)), min_size=1, max_size=40), st.integers(1, 4000))
def test_whatever_it_saw_more_tokens_never_cost_less(steps: list[tuple[int, float]], num_tokens: int) -> None:
    clock = WorkClock()
    for size, seconds in steps:
        clock.observe(size, seconds)
    assert clock.seconds_for(num_tokens) <= clock.seconds_for(num_tokens + 1) + 1e-9
    assert clock.at_least(num_tokens) <= clock.at_least(num_tokens + 1) + 1e-9
    assert clock.tokens_within(0.5) <= clock.tokens_within(1.0)
    within = clock.tokens_within(1.0)
    if within:
        assert clock.seconds_for(within) <= 1.0 + 1e-6
