"""The scheduler and the block manager, as arithmetic: random arrivals, lengths, cancels and budgets."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_memory import PagedMemory

from services.common.errors import QueueFull
from services.decoder.block_manager import BlockManager
from services.decoder.scheduler import Batch, Scheduler
from services.decoder.sequence import FinishReason, Limits, Sequence

STOP = 7


def sequence(
    num_prompt: int, max_tokens: int, *, deadline: float | None = None, min_tokens: int = 0, priority: int = 0
) -> Sequence:
    limits = Limits(max_tokens, min_tokens, frozenset({STOP}), deadline)
    return Sequence([1] * num_prompt, num_prompt, limits, priority=priority)


def scheduler(num_blocks: int = 64, block_size: int = 4, *, is_caching: bool = False, **bounds: int) -> Scheduler:
    defaults = {"max_batch_tokens": 16, "max_running": 8, "max_waiting": 100, "max_waiting_tokens": 10_000}
    return Scheduler(BlockManager(num_blocks, block_size, is_caching=is_caching), **{**defaults, **bounds})


def step(s: Scheduler, token: int = 1, num_tokens: int | None = None) -> Batch:
    batch = s.schedule(num_tokens)
    s.commit(batch, [token if row.is_caught_up else None for row in batch.rows])
    return batch


@dataclass
class World:
    """A scheduler driven at random over a memory that reads back, with the promises checked at every step."""

    scheduler: Scheduler
    max_batch_tokens: int
    max_running: int
    chance: random.Random
    memory: PagedMemory = field(init=False)
    ended: dict[int, str] = field(default_factory=dict)
    num_preempted: int = 0

    def __post_init__(self) -> None:
        self.memory = PagedMemory(self.scheduler.block_manager.block_size, lambda _: self.chance.choice([0, 1, STOP]))

    def end(self, one: Sequence, how: str) -> None:
        assert id(one) not in self.ended, "a sequence ends once"
        self.ended[id(one)] = how
        self.scheduler.remove(one)
        assert one.block_ids == []

    def step(self) -> None:
        s = self.scheduler
        waiting = list(s.waiting)
        num_tokens = self.chance.choice([None, 1, self.max_batch_tokens])
        num_streams = s.num_streams
        batch = s.schedule(num_tokens)
        self.num_preempted += len(batch.preempted)
        most = self.max_batch_tokens
        if num_tokens is not None:
            most = min(most, max(num_tokens, num_streams + s.block_manager.block_size))
        assert batch.num_tokens <= most
        assert len(s.running) <= self.max_running
        assert len({id(row.sequence) for row in batch.rows}) == len(batch.rows)
        for queue in (s.running, s.waiting):
            assert [one.turn for one in queue] == sorted(one.turn for one in queue)
        admitted = [one for one in waiting if one not in s.waiting]
        assert admitted == waiting[: len(admitted)], "nobody overtakes"
        if not s.is_idle:
            assert batch.rows or batch.preempted, "while there is work, each step does some"
        for one in batch.preempted:
            assert (one.num_computed_tokens, one.block_ids) == (0, [])
            assert all(one.turn >= row.sequence.turn for row in batch.rows), "the youngest make room"
        for row in batch.rows:
            assert 0 < row.num_new_tokens <= row.sequence.num_uncomputed_tokens
        s.block_manager.check(s.running)
        drawn = self.memory.execute(batch)
        s.commit(batch, drawn)
        s.block_manager.check(s.running)
        for row, token in zip(batch.rows, drawn, strict=True):
            if token is not None and row.sequence.finish_reason():
                self.end(row.sequence, "finished")


def begins_of(chance: random.Random, num_prompt: int) -> list[int]:
    """A prompt that begins as others do, for a while."""
    token_ids = [n % 3 for n in range(num_prompt)]
    cut = chance.randrange(num_prompt + 1)
    return token_ids[:cut] + [chance.randrange(3) for _ in token_ids[cut:]]


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_blocks=st.integers(4, 40),
    block_size=st.integers(1, 5),
    is_caching=st.booleans(),
    max_batch_tokens=st.integers(1, 20),
    max_running=st.integers(1, 6),
    arrivals=st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(-1, 1), st.sampled_from(["", "other"])),
        max_size=25,
    ),
)
def test_every_sequence_ends_once_and_reads_its_own_tokens(
    seed: int,
    num_blocks: int,
    block_size: int,
    is_caching: bool,
    max_batch_tokens: int,
    max_running: int,
    arrivals: list[tuple[int, int, int, str]],
) -> None:
    s = scheduler(
        num_blocks, block_size, is_caching=is_caching, max_batch_tokens=max_batch_tokens, max_running=max_running
    )
    world = World(s, max_batch_tokens, max_running, random.Random(seed))
    coming = [
        Sequence(
            begins_of(world.chance, num_prompt),
            num_prompt,
            Limits(max_tokens, stop_ids=frozenset({STOP})),
            cache_namespace=namespace,
            priority=priority,
        )
        for num_prompt, max_tokens, priority, namespace in arrivals
    ]
    drive(world, [one for one in coming if s.block_manager.can_ever_hold(one.max_total_tokens)])


def drive(world: World, coming: list[Sequence]) -> None:
    """Lets them come and go until all have ended."""
    s, everyone = world.scheduler, list(coming)
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


def test_a_small_cache_preempts_and_a_common_beginning_is_found() -> None:
    """What is said above of every run would be said of nothing if this never happened."""
    s = scheduler(12, 4, is_caching=True, max_batch_tokens=20, max_running=6)
    world = World(s, 20, 6, random.Random(1))
    coming = [Sequence(begins_of(world.chance, 16), 16, Limits(12, min_tokens=12)) for _ in range(20)]
    everyone = list(coming)
    drive(world, coming)
    assert world.num_preempted > 0
    assert sum(one.num_cached_tokens for one in everyone) > 20


def test_a_long_prompt_never_stalls_a_stream() -> None:
    s = scheduler(block_size=1, max_batch_tokens=8)
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
    assert [row.num_new_tokens for row in step(s).rows] == [10, 6], "within a block, which would cost a third of it"
    s.remove(one)
    assert [row.num_new_tokens for row in step(s).rows] == [14], "at the end of a block"
    assert [row.num_new_tokens for row in step(s).rows] == [10]
    assert other.finish_reason() is FinishReason.LENGTH


def test_a_request_waits_for_memory_and_nobody_overtakes_it() -> None:
    s = scheduler(num_blocks=10, block_size=4)
    first, big, small = sequence(16, 20), sequence(32, 8), sequence(1, 1)
    for one in (first, big, small):
        s.add(one)
    step(s)
    assert s.running == [first]
    s.remove(first)
    step(s)
    assert s.running == [big]


def test_the_youngest_makes_room_and_goes_on_as_if_nothing_had_been() -> None:
    s = scheduler(num_blocks=6, block_size=4, is_caching=True)
    memory = PagedMemory(4, lambda one: one.num_output_tokens % 5)
    first, second = (Sequence([token] * 8, 8, Limits(12)) for token in (1, 2))
    for one in (first, second):
        s.add(one)
    preempted: list[Sequence] = []
    while not s.is_idle:
        batch = s.schedule()
        preempted += batch.preempted
        s.commit(batch, memory.execute(batch))
        for one in [one for one in s.running if one.finish_reason()]:
            s.remove(one)
    assert preempted == [second]
    for one in (first, second):
        assert one.token_ids[8:] == [n % 5 for n in range(12)]
        assert one.num_cached_tokens == 0, "it had computed all of it itself"
    s.block_manager.check()


def test_what_a_preempted_sequence_left_is_found_again() -> None:
    """Its blocks go from the end, so that what was taken from it is all that it computes anew."""
    s = scheduler(num_blocks=20, block_size=4, is_caching=True, max_batch_tokens=64)
    memory = PagedMemory(4, lambda one: 3)
    first, second = Sequence([1] * 33, 33, Limits(10)), Sequence([2] * 33, 33, Limits(10))
    for one in (first, second):
        s.add(one)
    while not second.max_computed_tokens or second in s.running:
        batch = s.schedule()
        s.commit(batch, memory.execute(batch))
    before = memory.num_computed_tokens
    num_tokens = second.num_tokens
    s.remove(first)
    batch = s.schedule()
    s.commit(batch, memory.execute(batch))
    assert memory.num_computed_tokens - before < num_tokens / 2


def test_equal_prompts_that_come_at_once_are_computed_once() -> None:
    s = scheduler(num_blocks=64, block_size=4, is_caching=True)
    memory = PagedMemory(4, lambda one: 3)
    sequences = [Sequence(list(range(50)), 50, Limits(1)) for _ in range(4)]
    for one in sequences:
        s.add(one)
    while not s.is_idle:
        batch = s.schedule()
        s.commit(batch, memory.execute(batch))
        for row in batch.rows:
            if row.sequence.finish_reason():
                s.remove(row.sequence)
    assert [one.num_cached_tokens for one in sequences] == [0, 48, 48, 48]
    assert memory.num_computed_tokens == 50 + 3 * 2


def test_a_better_priority_overtakes_who_waits() -> None:
    s = scheduler(max_running=1)
    running, usual, urgent, idle = sequence(1, 9), sequence(1, 9), sequence(1, 9, priority=-1), sequence(1, 9)
    s.add(running)
    step(s)
    idle.priority = 1
    for one in (idle, usual, urgent):
        s.add(one)
    assert s.waiting == [urgent, usual, idle]
    step(s)
    assert s.running == [running], "who runs goes on"


@settings(max_examples=50, deadline=None)
@given(
    priority=st.integers(0, 3),
    num_prompt=st.integers(1, 30),
    others=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 6), st.integers(-2, 2)), min_size=1, max_size=4),
    num_blocks=st.integers(10, 30),
)
def test_nobody_waits_for_ever(
    priority: int, num_prompt: int, others: list[tuple[int, int, int]], num_blocks: int
) -> None:
    """However many keep coming with whatever priority: who comes more than so much work later waits behind."""
    s = scheduler(num_blocks, max_batch_tokens=8, max_running=3, max_waiting=10**6, max_waiting_tokens=10**9)
    patient = sequence(num_prompt, 3, priority=priority)
    s.add(patient)
    started: set[int] = set()
    for _ in range(20_000):
        for num_tokens, max_tokens, of_priority in others:
            s.add(sequence(num_tokens, max_tokens, priority=of_priority))
        batch = step(s)
        for row in batch.rows:
            one = row.sequence
            assert one is patient or patient in s.running or one.turn < patient.turn or id(one) in started
            started.add(id(one))
        if patient.num_output_tokens == 3:
            return
        for row in batch.rows:
            if row.sequence.finish_reason():
                s.remove(row.sequence)
    raise AssertionError("it starved")


def test_a_small_budget_cuts_prompts_and_no_stream() -> None:
    s = scheduler(max_batch_tokens=64)
    streams = [sequence(1, 50) for _ in range(6)]
    for one in streams:
        s.add(one)
    step(s)
    s.add(sequence(60, 4))
    assert [row.num_new_tokens for row in step(s, num_tokens=30).rows] == [1] * 6 + [24]
    assert [row.num_new_tokens for row in step(s, num_tokens=1).rows] == [1] * 6 + [4], "a block, at least"
    assert [row.num_new_tokens for row in step(s).rows] == [1] * 6 + [32]


def test_the_work_that_waits_is_what_the_last_ones_wrote() -> None:
    s = scheduler(max_running=1)
    s.add(sequence(1, 100))
    step(s)
    s.add(sequence(10, 100))
    assert s.num_waiting_work == 110
    for _ in range(5):
        one = sequence(1, 100)
        s.running.append(one)
        one.token_ids += [1] * 20
        s.remove(one)
    assert s.num_waiting_work == pytest.approx(30, abs=1)


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
    assert s.drop_late(4.9, lambda num_tokens: 0.0) == []
    assert s.drop_late(5.0, lambda num_tokens: 0.0) == [late]
    assert s.waiting == [patient]
    assert s.running == [running]


def test_a_deadline_that_no_step_can_meet_costs_none() -> None:
    """A token costs 0.1 s here, and 40 tokens are two steps of 16 and one of 8."""
    s = scheduler()
    late, early = sequence(40, 9, deadline=5.0), sequence(40, 9, deadline=5.0)
    s.add(late)
    assert s.drop_late(1.0, lambda num_tokens: 0.1 * num_tokens) == []
    assert s.drop_late(1.1, lambda num_tokens: 0.1 * num_tokens) == [late]
    s.add(early)
    assert s.drop_late(1.1, lambda num_tokens: 0.1 * min(num_tokens, 8)) == [], "no step costs more than this"


def test_what_is_cached_counts_towards_a_deadline() -> None:
    s = scheduler(is_caching=True)
    s.add(sequence(41, 1))
    for _ in range(3):
        step(s)
    cached = sequence(41, 9, deadline=5.0)
    s.add(cached)
    assert s.drop_late(4.8, lambda num_tokens: 0.1 * num_tokens) == []
    assert s.drop_late(4.95, lambda num_tokens: 0.1 * num_tokens) == [cached]


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
