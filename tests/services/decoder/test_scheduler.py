"""The scheduler and the block manager, as arithmetic: random arrivals, lengths, cancels and budgets."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import QueueFull
from services.decoder.block_manager import BlockManager
from services.decoder.scheduler import Batch, Scheduler
from services.decoder.sequence import FinishReason, Limits, Sequence

STOP = 7


def sequence(num_prompt: int, max_tokens: int, *, deadline: float | None = None, min_tokens: int = 0) -> Sequence:
    return Sequence([1] * num_prompt, num_prompt, Limits(max_tokens, min_tokens, frozenset({STOP}), deadline))


def scheduler(num_blocks: int = 64, block_size: int = 4, **bounds: int) -> Scheduler:
    defaults = {"max_batch_tokens": 16, "max_running": 8, "max_waiting": 100, "max_waiting_tokens": 10_000}
    return Scheduler(BlockManager(num_blocks, block_size), **{**defaults, **bounds})


def step(s: Scheduler, token: int = 1) -> Batch:
    batch = s.schedule()
    s.commit(batch, [token if row.is_caught_up else None for row in batch.rows])
    return batch


@dataclass
class World:
    """A scheduler driven at random, with the promises checked at every step."""

    scheduler: Scheduler
    max_batch_tokens: int
    max_running: int
    chance: random.Random
    ended: dict[int, str] = field(default_factory=dict)

    def end(self, one: Sequence, how: str) -> None:
        assert id(one) not in self.ended, "a sequence ends once"
        self.ended[id(one)] = how
        self.scheduler.remove(one)
        assert one.block_ids == []

    def step(self) -> None:
        waiting = list(self.scheduler.waiting)
        batch = self.scheduler.schedule()
        assert batch.num_tokens <= self.max_batch_tokens
        assert len(self.scheduler.running) <= self.max_running
        assert len({id(row.sequence) for row in batch.rows}) == len(batch.rows)
        admitted = len(waiting) - len(self.scheduler.waiting)
        assert list(self.scheduler.waiting) == waiting[admitted:], "first come, first served"
        if not self.scheduler.is_idle:
            assert batch.rows, "while there is work, each step does some"
        owned = [block for one in self.scheduler.running for block in one.block_ids]
        assert len(owned) == len(set(owned)) == self.scheduler.block_manager.num_used_blocks
        for row in batch.rows:
            last = row.sequence.num_computed_tokens + row.num_new_tokens
            assert 0 < row.num_new_tokens <= row.sequence.num_uncomputed_tokens
            assert last <= len(row.sequence.block_ids) * self.scheduler.block_manager.block_size
        drawn = [self.chance.choice([1, 2, STOP]) if row.is_caught_up else None for row in batch.rows]
        self.scheduler.commit(batch, drawn)
        for row, token in zip(batch.rows, drawn, strict=True):
            if token is not None and row.sequence.finish_reason():
                self.end(row.sequence, "finished")


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_blocks=st.integers(4, 40),
    block_size=st.integers(1, 5),
    max_batch_tokens=st.integers(1, 20),
    max_running=st.integers(1, 6),
    arrivals=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12)), max_size=25),
)
def test_every_sequence_ends_once_and_no_block_is_lost(
    seed: int,
    num_blocks: int,
    block_size: int,
    max_batch_tokens: int,
    max_running: int,
    arrivals: list[tuple[int, int]],
) -> None:
    s = scheduler(num_blocks, block_size, max_batch_tokens=max_batch_tokens, max_running=max_running)
    world = World(s, max_batch_tokens, max_running, random.Random(seed))
    coming = [sequence(*lengths) for lengths in arrivals]
    coming = [one for one in coming if s.block_manager.can_ever_hold(one.max_total_tokens)]
    everyone = list(coming)
    for _ in range(5000):
        if coming and world.chance.random() < 0.4:
            s.add(coming.pop(0))
        if world.chance.random() < 0.05 and (alive := [*s.running, *s.waiting]):
            world.end(world.chance.choice(alive), "cancelled")
        world.step()
        if s.is_idle and not coming:
            break
    assert world.ended.keys() == {id(one) for one in everyone}
    s.block_manager.check()


def test_a_long_prompt_never_stalls_a_stream() -> None:
    s = scheduler(max_batch_tokens=8)
    stream, prompt = sequence(2, 50), sequence(60, 4)
    s.add(stream)
    step(s)
    s.add(prompt)
    for _ in range(7):
        before = stream.num_output_tokens
        batch = step(s)
        assert stream.num_output_tokens == before + 1
        assert batch.num_tokens == 8, "the prompt takes what the streams leave"


def test_a_prompt_is_cut_wherever_the_budget_ends() -> None:
    s = scheduler(max_batch_tokens=16)
    one, other = sequence(10, 1), sequence(30, 1)
    s.add(one)
    s.add(other)
    assert [row.num_new_tokens for row in step(s).rows] == [10, 6]
    s.remove(one)
    assert [row.num_new_tokens for row in step(s).rows] == [16]
    assert [row.num_new_tokens for row in step(s).rows] == [8]
    assert other.finish_reason() is FinishReason.LENGTH


def test_a_request_waits_for_memory_and_nobody_overtakes_it() -> None:
    s = scheduler(num_blocks=10, block_size=4)
    first, big, small = sequence(4, 20), sequence(4, 36), sequence(1, 1)
    for one in (first, big, small):
        s.add(one)
    step(s)
    assert s.running == [first]
    s.remove(first)
    step(s)
    assert s.running == [big]


def test_the_queue_is_bounded_in_requests_and_tokens() -> None:
    s = scheduler(max_waiting=2)
    s.add(sequence(1, 1))
    s.add(sequence(1, 1))
    with pytest.raises(QueueFull, match="2 requests"):
        s.add(sequence(1, 1))
    s = scheduler(max_waiting_tokens=10)
    s.add(sequence(30, 1))
    with pytest.raises(QueueFull, match="30 tokens"):
        s.add(sequence(1, 1))


def test_an_expired_request_costs_no_step() -> None:
    s = scheduler(max_running=1)
    running, late, patient = sequence(1, 9, deadline=5.0), sequence(1, 9, deadline=5.0), sequence(1, 9)
    s.add(running)
    step(s)
    s.add(late)
    s.add(patient)
    assert s.drop_expired(4.9) == []
    assert s.drop_expired(5.0) == [late]
    assert list(s.waiting) == [patient]
    assert s.running == [running]


def test_why_a_sequence_ends() -> None:
    one = sequence(2, 5, min_tokens=3)
    assert one.finish_reason() is None
    one.token_ids += [1, STOP]
    assert one.finish_reason() is None, "too early to stop"
    one.token_ids += [STOP]
    assert one.finish_reason() is FinishReason.STOP
    one.token_ids[-1] = 1
    assert one.finish_reason() is None
    one.token_ids += [1, 1]
    assert one.finish_reason() is FinishReason.LENGTH
