"""The batcher: no timer, each item answered once and in order, the budget kept, nothing lost."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from services.common.errors import DeadlineExceeded, Internal, InvalidRequest
from services.encoder.batcher import Batcher, Item


def item(number: int, num_tokens: int = 4) -> Item:
    return Item([number] * num_tokens, [0] * num_tokens, None)


class Device:
    """A runner that takes its time and answers with each item's first token."""

    def __init__(self, seconds: float = 0.002) -> None:
        self.seconds = seconds
        self.batches: list[list[int]] = []
        self.fails_on: int | None = None
        self._is_busy = False

    async def __call__(self, items: list[Item]) -> list[int]:
        assert not self._is_busy, "one batch at a time"
        self._is_busy = True
        self.batches.append([one.num_tokens for one in items])
        await asyncio.sleep(self.seconds)
        self._is_busy = False
        if any(one.token_ids[0] == self.fails_on for one in items):
            raise ValueError("secret text")
        return [one.token_ids[0] for one in items]


@asynccontextmanager
async def batching(device: Device, **bounds: int) -> AsyncIterator[Batcher]:
    defaults = {"max_batch_tokens": 16, "max_waiting_requests": 1000, "max_waiting_tokens": 10**6}
    made = Batcher(device, **{**defaults, **bounds})
    loop = asyncio.create_task(made.run())
    yield made
    assert made.num_waiting_tokens == 0
    assert made.num_waiting_requests == 0
    loop.cancel()
    with suppress(asyncio.CancelledError):
        await loop


async def ask(batcher: Batcher, items: Sequence[Item], deadline: float | None = None) -> list[int]:
    return [result.output for result in await batcher.submit(items, deadline=deadline)]


async def test_a_lone_request_goes_at_once() -> None:
    device = Device(seconds=0)
    async with batching(device) as batcher:
        task = asyncio.create_task(ask(batcher, [item(7)]))
        for _ in range(10):  # turns of the event loop: no clock is waited for
            await asyncio.sleep(0)
        assert task.done()
        assert await task == [7]
    assert device.batches == [[4]]


async def test_batches_grow_while_the_runner_is_busy() -> None:
    device = Device(seconds=0.02)
    async with batching(device) as batcher:
        answers = await asyncio.gather(*(ask(batcher, [item(n)]) for n in range(9)))
    assert answers == [[n] for n in range(9)]
    assert [len(batch) for batch in device.batches] in ([4, 4, 1], [1, 4, 4])


async def test_a_long_item_goes_alone() -> None:
    device = Device()
    async with batching(device) as batcher:
        assert await ask(batcher, [item(1, 4), item(2, 100), item(3, 4)]) == [1, 2, 3]
    assert [100] in device.batches
    assert all(sum(batch) <= 16 or len(batch) == 1 for batch in device.batches)


async def test_requests_take_turns() -> None:
    """A single request does not wait for a bulk one to end."""
    device = Device(seconds=0.005)
    async with batching(device) as batcher:
        bulk = asyncio.create_task(ask(batcher, [item(n) for n in range(200)]))
        await asyncio.sleep(0.01)
        num_before = len(device.batches)
        assert await ask(batcher, [item(999)]) == [999]
        assert len(device.batches) <= num_before + 2
        assert not bulk.done()
        assert await bulk == list(range(200))


async def test_a_request_that_no_queue_would_take_is_refused_for_good() -> None:
    async with batching(Device(), max_waiting_tokens=80) as batcher:
        with pytest.raises(InvalidRequest, match=r"holds 41 tokens in all, more than 40: send it in parts"):
            await ask(batcher, [item(1, 20), item(2, 21)])
        assert await ask(batcher, [item(1, 20), item(2, 20)]) == [1, 2]


async def test_a_passed_deadline_costs_no_pass() -> None:
    device = Device(seconds=0.02)
    async with batching(device) as batcher:
        running = asyncio.create_task(ask(batcher, [item(1)]))
        await asyncio.sleep(0.005)
        with pytest.raises(DeadlineExceeded):
            await ask(batcher, [item(2)], deadline=time.monotonic())
        assert await running == [1]
    assert device.batches == [[4]]


async def test_a_caller_that_leaves_takes_its_items_along() -> None:
    device = Device(seconds=0.02)
    async with batching(device) as batcher:
        running = asyncio.create_task(ask(batcher, [item(1)]))
        await asyncio.sleep(0.005)
        gone = asyncio.create_task(ask(batcher, [item(n) for n in range(50)]))
        await asyncio.sleep(0)
        gone.cancel()
        assert await running == [1]
        assert await ask(batcher, [item(3)]) == [3]
    assert device.batches == [[4], [4]]


async def test_a_failed_pass_fails_its_requests_alone() -> None:
    device = Device()
    device.fails_on = 13
    async with batching(device, max_batch_tokens=4) as batcher:
        good, bad = await asyncio.gather(ask(batcher, [item(1)]), ask(batcher, [item(13)]), return_exceptions=True)
        assert good == [1]
        assert isinstance(bad, Internal)
        assert "secret" not in bad.message
        assert await ask(batcher, [item(2)]) == [2]


@pytest.mark.parametrize("seed", range(8))
async def test_everything_is_answered_once_and_in_order(seed: int) -> None:
    """Random requests, cancels, deadlines and failures at once."""
    chance = random.Random(seed)
    device = Device(seconds=0.0005)
    device.fails_on = 77
    numbers = iter(range(10**6))

    async def one(batcher: Batcher) -> None:
        await asyncio.sleep(chance.random() * 0.05)
        asked = [next(numbers) for _ in range(chance.choice([1, 1, 1, 2, 30]))]
        deadline = time.monotonic() + chance.random() * 0.01 if chance.random() < 0.2 else None
        task = asyncio.create_task(ask(batcher, [item(n, chance.randrange(1, 25)) for n in asked], deadline))
        if chance.random() < 0.2:
            await asyncio.sleep(chance.random() * 0.01)
            task.cancel()
        with suppress(asyncio.CancelledError, DeadlineExceeded, Internal):
            assert await task == asked

    async with batching(device) as batcher:
        await asyncio.gather(*(one(batcher) for _ in range(120)))
    assert all(sum(batch) <= 16 or len(batch) == 1 for batch in device.batches)
