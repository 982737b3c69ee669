"""The batcher with a runner that waits for a gate: for any requests, each item is computed and answered once."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from services.common.errors import DeadlineExceeded, Internal, QueueFull
from services.encoder.batcher import Batcher, Item, Result

BUDGET = 16


class Script:
    """A runner that answers an item with its name, one batch each time the gate lets it."""

    def __init__(self) -> None:
        self.gate = asyncio.Semaphore(0)
        self.batches: list[list[str]] = []
        self.failing: set[str] = set()
        self.is_running = False

    async def execute(self, items: list[Item]) -> list[str]:
        assert not self.is_running, "two batches at once"
        self.is_running = True
        self.batches.append([item.head for item in items])
        try:
            await self.gate.acquire()
        finally:
            self.is_running = False
        if self.failing & set(self.batches[-1]):
            raise ValueError("the secret text")
        return [item.head for item in items]

    def open(self) -> None:
        for _ in range(10_000):
            self.gate.release()


class House:
    """A batcher with its runner at hand."""

    def __init__(self, *, max_requests: int = 1000, max_tokens: int = 10_000, turn: asyncio.Lock | None = None) -> None:
        self.seconds = 0.0  # on the batcher's clock
        self.script = Script()
        self.observed: list[int] = []
        self.batcher = Batcher(
            self.script.execute,
            max_batch_tokens=BUDGET,
            max_waiting_requests=max_requests,
            max_waiting_tokens=max_tokens,
            observe=lambda items: self.observed.append(len(items)),
            turn=turn,
            now=lambda: self.seconds,
        )

    def submit(
        self, name: str, lengths: Sequence[int] = (4,), deadline: float | None = None
    ) -> "asyncio.Task[list[Result]]":
        """Items are called `name0`, `name1`, ..."""
        items = [Item([0] * n, [0] * n, f"{name}{i}") for i, n in enumerate(lengths)]
        return asyncio.create_task(self.batcher.submit(items, deadline=deadline))


@asynccontextmanager
async def house(**bounds: Any) -> AsyncIterator[House]:
    made = House(**bounds)
    loop = asyncio.create_task(made.batcher.run())
    yield made
    assert not loop.done()
    loop.cancel()
    assert made.batcher.num_waiting_requests == 0
    assert made.batcher.num_waiting_tokens == 0
    assert made.batcher.num_running_requests == 0


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def names(results: Sequence[Result]) -> list[str]:
    return [result.output for result in results]


async def test_a_refusal_says_how_long_the_queue_takes() -> None:
    """16 tokens in 0.1 s before, 160 wait: a second."""
    async with house(max_requests=10) as h:
        paced = h.submit("a", [BUDGET])
        await settle()
        h.seconds += 0.1
        h.script.gate.release()
        await paced
        tasks = [h.submit("b")]
        await settle()
        tasks += [h.submit(name, [BUDGET]) for name in "cdefghijkl"]
        await settle()
        with pytest.raises(QueueFull) as caught:
            await h.submit("m")
        assert caught.value.retry_after_ms is not None
        assert 1000 <= caught.value.retry_after_ms <= 1500
        h.script.open()
        await asyncio.gather(*tasks)


async def test_a_lone_request_does_not_slow_down_what_is_promised() -> None:
    """It takes 0.05 s for a token; the queue after it is full of batches that take twice that for sixteen."""
    async with house(max_requests=1) as h:
        for name, length, seconds in (("full", BUDGET, 0.1), ("lone", 1, 0.05)):
            request = h.submit(name, [length])
            await settle()
            h.seconds += seconds
            h.script.gate.release()
            await request
        tasks = [h.submit("b")]
        await settle()
        tasks.append(h.submit("c", [BUDGET] * 10))
        await settle()
        with pytest.raises(QueueFull) as caught:
            await h.submit("m")
        assert caught.value.retry_after_ms is not None
        assert 1000 <= caught.value.retry_after_ms <= 1.5 * 1200
        h.script.open()
        await asyncio.gather(*tasks)


async def test_the_queue_is_bounded_in_requests_and_in_tokens() -> None:
    async with house(max_requests=2) as h:
        tasks = [h.submit("running", [BUDGET])]
        await settle()
        tasks += [h.submit(name, [BUDGET]) for name in "ab"]
        await settle()
        with pytest.raises(QueueFull) as caught:
            await h.submit("c")
        assert caught.value.retry_after_ms is not None
        assert caught.value.retry_after_ms >= 100
        h.script.open()
        await asyncio.gather(*tasks)
    async with house(max_tokens=5 * BUDGET) as h:
        tasks = [h.submit("running", [BUDGET])]
        await settle()
        tasks.append(h.submit("bulk", [BUDGET, BUDGET]))
        await settle()
        with pytest.raises(QueueFull):
            await h.submit("more bulk", [BUDGET, 1])
        # What fits into a batch still finds room: bulk may have half of the queue.
        tasks += [h.submit(name, [BUDGET]) for name in "abc"]
        await settle()
        with pytest.raises(QueueFull):
            await h.submit("d", [1])
        h.script.open()
        await asyncio.gather(*tasks)


async def test_results_tell_the_wait_from_the_pass() -> None:
    async with house() as h:
        first = h.submit("a")
        await settle()
        second = h.submit("b")
        await settle()
        h.seconds += 5
        h.script.gate.release()
        await first
        await settle()
        h.seconds += 3
        h.script.gate.release()
        [result] = await second
        assert (result.queue_seconds, result.inference_seconds) == (5, 3)


async def test_a_caller_that_left_a_moment_ago_costs_no_pass() -> None:
    """Its task has not run since, so it is still in the queue when the runner becomes free."""
    async with house() as h:
        busy = h.submit("a")
        await settle()
        gone, stays = h.submit("gone"), h.submit("stays")
        await settle()
        h.script.gate.release()
        gone.cancel()
        await settle()
        h.script.open()
        await asyncio.gather(busy, stays)
        assert h.script.batches == [["a0"], ["stays0"]]


async def test_running_requests_are_those_of_the_batch() -> None:
    async with house() as h:
        tasks = [h.submit("b", [4] * 6), h.submit("s")]
        await settle()
        assert h.script.batches == [["b0", "s0", "b1", "b2"]]
        assert (h.batcher.num_running_requests, h.batcher.num_waiting_requests) == (2, 1)
        h.script.gate.release()
        await settle()
        assert h.script.batches[1:] == [["b3", "b4", "b5"]]
        assert (h.batcher.num_running_requests, h.batcher.num_waiting_requests) == (1, 0)
        h.script.open()
        await asyncio.gather(*tasks)
        assert h.observed == [4, 3]


requests = st.lists(
    st.tuples(
        st.lists(st.integers(1, 2 * BUDGET), min_size=1, max_size=8),
        st.sampled_from(["stays", "stays", "cancelled", "late", "fails"]),
        st.integers(0, 3),  # batches that pass before it comes, or before it goes
    ),
    min_size=1,
    max_size=12,
)


@hypothesis_settings(max_examples=150, deadline=None)
@given(requests)
def test_every_item_is_answered_once(given_requests: list[tuple[list[int], str, int]]) -> None:
    asyncio.run(_answered_once(given_requests))


async def _answered_once(given_requests: list[tuple[list[int], str, int]]) -> None:
    async with house() as h:
        tasks = {}
        for number, (lengths, fate, num_batches) in enumerate(given_requests):
            name = f"{number}:"
            deadline = -1.0 if fate == "late" else None
            tasks[name] = h.submit(name, lengths, deadline)
            if fate == "fails":
                h.script.failing.add(f"{name}{len(lengths) - 1}")
            for _ in range(num_batches):
                h.script.gate.release()
                await settle()
            if fate == "cancelled":
                tasks[name].cancel()
        h.script.open()
        answers = await asyncio.wait_for(asyncio.gather(*tasks.values(), return_exceptions=True), 10)

        # A batch that fails runs again in halves, until its culprits are alone.
        done = [name for batch in h.script.batches if not h.script.failing & set(batch) for name in batch]
        assert len(done) == len(set(done)), "an item was computed twice"
        lengths_of = {f"{n}:{i}": length for n, (ls, _, _) in enumerate(given_requests) for i, length in enumerate(ls)}
        for batch in h.script.batches:
            assert len(batch) == 1 or sum(lengths_of[name] for name in batch) <= BUDGET
        seen = {name for batch in h.script.batches for name in batch}
        for name, (lengths, fate, _), answer in zip(tasks, given_requests, answers, strict=True):
            items = [f"{name}{i}" for i in range(len(lengths))]
            if isinstance(answer, list):
                assert names(answer) == items
                assert set(items) <= set(done)
                assert fate != "fails"
            elif isinstance(answer, Internal):
                assert fate == "fails"
            elif isinstance(answer, DeadlineExceeded):
                assert fate == "late"
                assert not set(items) & seen
            else:
                assert isinstance(answer, asyncio.CancelledError)
                assert fate == "cancelled"


async def test_a_culprit_fails_alone() -> None:
    async with house() as h:
        busy = h.submit("busy")
        await settle()
        h.script.failing.add("bad0")
        tasks = [h.submit(name) for name in ("a", "b", "bad", "c")]
        await settle()
        h.script.open()
        [_, a, b, bad, c] = await asyncio.gather(busy, *tasks, return_exceptions=True)
        assert [names(one) for one in (a, b, c)] == [["a0"], ["b0"], ["c0"]]
        assert isinstance(bad, Internal)
        assert "secret" not in bad.message
        assert isinstance(bad.__cause__, ValueError)


async def test_a_device_that_fails_is_not_tried_for_every_item() -> None:
    async with house() as h:
        busy = h.submit("busy")
        await settle()
        h.script.failing.update(f"all{i}" for i in range(16))
        failing = h.submit("all", [1] * 16)
        await settle()
        h.script.open()
        await busy
        with pytest.raises(Internal):
            await failing
        assert len(h.script.batches) <= 1 + 2 * 3 * (16).bit_length()
        assert len(h.script.batches) < 1 + 2 * 16 - 1


async def test_who_left_is_not_kept() -> None:
    async with house() as h:
        busy = h.submit("busy")
        await settle()
        gone = [h.submit(f"gone{i}:") for i in range(50)]
        await settle()
        waiting = list(h.batcher._waiting)
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        assert [request.items for request in waiting] == [()] * 50
        h.script.open()
        await busy
        await settle()
        assert not h.batcher._order


async def test_an_item_weighs_what_it_costs() -> None:
    async with house() as h:
        busy = h.submit("busy")
        await settle()
        dear = [Item([0] * 2, [0] * 2, f"dear{i}", cost=BUDGET) for i in range(2)]
        costly = asyncio.create_task(h.batcher.submit(dear))
        light = h.submit("light", [2])
        await settle()
        assert h.batcher.num_waiting_tokens == 2 * BUDGET + 2
        h.script.open()
        await asyncio.gather(busy, costly, light)
        assert h.script.batches == [["busy0"], ["light0"], ["dear0"], ["dear1"]]


async def test_a_short_request_overtakes_a_long_one() -> None:
    async with house() as h:
        busy = h.submit("busy")
        await settle()
        tasks = [h.submit("long", [15]), h.submit("bulk", [8] * 4), h.submit("short", [2])]
        await settle()
        h.script.open()
        await asyncio.gather(busy, *tasks)
        order = [name for batch in h.script.batches for name in batch]
        assert order == ["busy0", "short0", "bulk0", "long0", "bulk1", "bulk2", "bulk3"]


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(1, 2 * BUDGET), st.lists(st.integers(1, BUDGET), min_size=1, max_size=4))
def test_nobody_waits_for_ever(length: int, others: list[int]) -> None:
    """However many shorter requests keep coming: only those within its own length of work come first."""
    asyncio.run(_served_among_others(length, others))


async def _served_among_others(length: int, others: list[int]) -> None:
    async with house() as h:
        busy = h.submit("busy")
        await settle()
        patient = h.submit("patient", [length])
        tasks = []
        num_batches = 0
        while not patient.done():
            tasks += [h.submit(f"{num_batches}:", [n]) for n in others for _ in range(3)]
            h.script.gate.release()
            await settle()
            num_batches += 1
            num_batches_of_its_length = length // min(others) + 2
            assert num_batches <= 2 + 3 * len(others) * num_batches_of_its_length
        h.script.open()
        await asyncio.gather(busy, patient, *tasks)


async def test_two_batchers_take_turns_on_one_device() -> None:
    """Neither runs while the other does, and each cuts its batch only when its turn has come."""
    turn = asyncio.Lock()
    async with house(turn=turn) as a, house(turn=turn) as b:
        first = a.submit("a")
        await settle()
        second = [b.submit(name) for name in "xyz"]
        third = a.submit("c")
        await settle()
        assert (a.script.batches, b.script.batches) == ([["a0"]], [])
        late = b.submit("late")
        await settle()
        a.script.gate.release()
        await settle()
        assert (a.script.batches, b.script.batches) == ([["a0"]], [["x0", "y0", "z0", "late0"]])
        b.script.gate.release()
        await settle()
        assert a.script.batches == [["a0"], ["c0"]]
        a.script.gate.release()
        await asyncio.gather(first, *second, third, late)
