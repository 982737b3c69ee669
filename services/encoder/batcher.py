"""The batcher without a timer: it waits for a free runner, then cuts a batch by token budget at the last moment.

A lone request goes at once; batches grow exactly while the runner is busy. (The idea is text-embeddings-inference's.)
Requests take turns, an item each, so that one with a thousand inputs does not stand in everybody's way.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.common.errors import DeadlineExceeded, Internal, QueueFull


@dataclass(frozen=True, slots=True)
class Item:
    """One input: its tokens, the segment of each, and the head that reads it (opaque here)."""

    token_ids: Sequence[int]
    type_ids: Sequence[int]
    head: Any

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Result:
    """What the runner made of an item, how long it waited, and how long its batch ran."""

    output: Any
    queue_seconds: float
    inference_seconds: float


@dataclass(eq=False, slots=True)
class _Request:
    """Items of one caller, answered in order."""

    items: Sequence[Item]
    deadline: float | None
    submitted: float
    answer: "asyncio.Future[list[Result]]"
    num_taken: int = 0
    results: dict[int, Result] = field(default_factory=dict)

    @property
    def num_left(self) -> int:
        return len(self.items) - self.num_taken


Execute = Callable[[list[Item]], Awaitable[list[Any]]]


class Batcher:
    """Bounds: tokens of a batch (a longer item goes alone), requests and tokens that wait.

    `execute` runs one batch and returns an output an item; the batcher never runs two at once.
    """

    def __init__(
        self,
        execute: Execute,
        *,
        max_batch_tokens: int,
        max_waiting_requests: int,
        max_waiting_tokens: int,
        observe: Callable[[list[Item]], None] = lambda items: None,
    ) -> None:
        self._execute = execute
        self._max_batch_tokens = max_batch_tokens
        self._max_waiting_requests = max_waiting_requests
        self._max_waiting_tokens = max_waiting_tokens
        self._observe = observe
        self._turns: deque[_Request] = deque()
        self._has_work = asyncio.Event()
        self._tokens_per_second = 0.0
        self.num_waiting_tokens = 0
        self.num_running_requests = 0

    @property
    def num_waiting_requests(self) -> int:
        return len(self._turns)

    async def submit(self, items: Sequence[Item], *, deadline: float | None = None) -> list[Result]:
        """Results in the order of the items; a caller that is cancelled takes its items out of the queue.

        Units: `deadline` is a monotonic time in seconds.
        Raises: QueueFull at once; DeadlineExceeded before a pass was spent on it; Internal when its batch failed.
        """
        assert items
        num_tokens = sum(item.num_tokens for item in items)
        if len(self._turns) >= self._max_waiting_requests or (
            self._turns and self.num_waiting_tokens + num_tokens > self._max_waiting_tokens
        ):
            raise QueueFull(
                f"{len(self._turns)} requests with {self.num_waiting_tokens} tokens are waiting, the most that may.",
                retry_after_ms=self._wait_ms(),
            )
        answer: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
        request = _Request(items, deadline, time.monotonic(), answer)
        self._turns.append(request)
        self.num_waiting_tokens += num_tokens
        self._has_work.set()
        try:
            return await answer
        finally:
            self._leave(request)

    async def run(self) -> None:
        """The loop; cancel it to end it."""
        while True:
            await self._has_work.wait()
            batch = self._cut(time.monotonic())
            if batch:
                await self._run_batch(batch)
            elif not self._turns:
                self._has_work.clear()

    def _cut(self, now: float) -> list[tuple[_Request, int]]:
        """The next batch: an item of each request in turn, while the budget lasts."""
        for request in [r for r in self._turns if r.deadline is not None and r.deadline <= now]:
            self._fail(request, DeadlineExceeded("The deadline passed in the queue."))
        batch: list[tuple[_Request, int]] = []
        budget = self._max_batch_tokens
        while self._turns:
            request = self._turns[0]
            if request.answer.done():  # cancelled a moment ago, and not yet gone
                self._leave(request)
                continue
            item = request.items[request.num_taken]
            if batch and item.num_tokens > budget:
                break
            budget -= item.num_tokens
            self.num_waiting_tokens -= item.num_tokens
            batch.append((request, request.num_taken))
            request.num_taken += 1
            self._turns.popleft()
            if request.num_left:
                self._turns.append(request)
        return batch

    async def _run_batch(self, batch: list[tuple[_Request, int]]) -> None:
        items = [request.items[index] for request, index in batch]
        requests = list(dict.fromkeys(request for request, _ in batch))
        self._observe(items)
        self.num_running_requests = len(requests)
        started = time.monotonic()
        try:
            outputs = await self._execute(items)
        except Exception as error:
            for request in requests:
                self._fail(request, Internal("The model's pass failed."), cause=error)
            return
        finally:
            self.num_running_requests = 0
        seconds = time.monotonic() - started
        self._tokens_per_second = sum(item.num_tokens for item in items) / max(seconds, 1e-6)
        for (request, index), output in zip(batch, outputs, strict=True):
            request.results[index] = Result(output, started - request.submitted, seconds)
        for request in requests:
            if len(request.results) == len(request.items) and not request.answer.done():
                request.answer.set_result([request.results[i] for i in range(len(request.items))])

    def _fail(self, request: _Request, error: Exception, *, cause: BaseException | None = None) -> None:
        error.__cause__ = cause
        self._leave(request)
        if not request.answer.done():
            request.answer.set_exception(error)

    def _leave(self, request: _Request) -> None:
        """Takes what is left of a request out of the queue; nothing where nothing is left."""
        if request in self._turns:
            self._turns.remove(request)
            self.num_waiting_tokens -= sum(item.num_tokens for item in request.items[request.num_taken :])
            request.num_taken = len(request.items)

    def _wait_ms(self) -> int:
        """How long the queue will take at the last batch's pace, at least a tenth of a second."""
        pace = self._tokens_per_second or float(self._max_batch_tokens)
        return max(100, round(1000 * self.num_waiting_tokens / pace))
