"""The batcher without a timer: it waits for a free runner, then cuts a batch by token budget at the last moment.

A lone request goes at once; batches grow exactly while the runner is busy. (The idea is text-embeddings-inference's.)

Who comes first is told by a clock of work, which counts the tokens that were ever taken:

    tag of an item     the clock when its request came up with it + the item's own tokens
    goes first         the item with the smallest tag

So a short item overtakes a long one that came at the same time, and is never overtaken by what came more than its own
length of work later: nobody waits for ever. A request comes up with one item after the other, so one with a thousand
inputs takes turns with everybody else.
"""

import asyncio
import heapq
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.common.errors import DeadlineExceeded, Internal, InvalidRequest, QueueFull


@dataclass(frozen=True, slots=True)
class Item:
    """One pass over one input: its tokens, the segment of each, and the head that reads it (opaque here).

    `rows` are what a head scores, where it scores more than the input as a whole: tokens, or layers; None: all.
    `reduce` makes of the scores what is kept, where the runner has them. `cost` is what it takes of the runner's time,
    in tokens of an ordinary pass, where that is more than its own tokens.
    """

    token_ids: Sequence[int]
    type_ids: Sequence[int]
    head: Any
    rows: Sequence[int] | None = None
    reduce: Callable[[Any], Any] | None = None
    cost: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def weight(self) -> int:
        """In the budget of a batch, in the clock of work and in the queue."""
        return max(self.num_tokens, self.cost)


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


@dataclass(frozen=True, slots=True)
class _Failure:
    """In the place of an output: why there is none."""

    cause: Exception


Execute = Callable[[list[Item]], Awaitable[list[Any]]]


class Batcher:
    """Bounds: tokens of a batch (a longer item goes alone), requests and tokens that wait.

    `execute` runs one batch and returns an output an item. Batchers that share a device share its `turn`: whoever holds
    it runs, so that no two batches run at once and each is cut when it really starts.
    """

    def __init__(
        self,
        execute: Execute,
        *,
        max_batch_tokens: int,
        max_waiting_requests: int,
        max_waiting_tokens: int,
        observe: Callable[[list[Item]], None] = lambda items: None,
        turn: asyncio.Lock | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._execute = execute
        self._max_batch_tokens = max_batch_tokens
        self._max_waiting_requests = max_waiting_requests
        self._max_waiting_tokens = max_waiting_tokens
        self._observe = observe
        self._turn = turn or asyncio.Lock()
        self._now = now
        self._waiting: set[_Request] = set()
        # By tag, equal ones by arrival; who has left is skipped when its tag comes up.
        self._order: list[tuple[int, int, _Request]] = []
        self._arrivals = itertools.count()
        self._clock = 0
        self._has_work = asyncio.Event()
        self._tokens_per_second = 0.0
        self._free_since = 0.0
        self.num_waiting_tokens = 0
        self.num_running_requests = 0

    @property
    def num_waiting_requests(self) -> int:
        return len(self._waiting)

    async def submit(self, items: Sequence[Item], *, deadline: float | None = None) -> list[Result]:
        """Results in the order of the items; a caller that is cancelled takes its items out of the queue.

        Units: `deadline` is a monotonic time in seconds.
        Raises: InvalidRequest for one that no queue would take; QueueFull at once; DeadlineExceeded before a pass was
        spent on it; Internal when its pass failed.
        """
        assert items
        num_tokens = sum(item.weight for item in items)
        self.require_room(num_tokens)
        answer: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
        request = _Request(items, deadline, self._now(), answer)
        self._waiting.add(request)
        self._line_up(request)
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
            async with self._turn:
                batch = self._cut(self._now())
                if batch:
                    await self._run_batch(batch)
            if not self._waiting:
                self._order.clear()
                self._has_work.clear()

    def require_room(self, num_tokens: int = 1) -> None:
        """Requests larger than a batch may fill half of the queue: the rest is for those that they would shut out.

        Raises: InvalidRequest for one that no queue would take; QueueFull.
        """
        is_bulk = num_tokens > self._max_batch_tokens
        most = self._max_waiting_tokens // 2 if is_bulk else self._max_waiting_tokens
        if num_tokens > max(most, self._max_batch_tokens):
            raise InvalidRequest(f"The request holds {num_tokens} tokens in all, more than {most}: send it in parts.")
        if len(self._waiting) >= self._max_waiting_requests or (
            self._waiting and self.num_waiting_tokens + num_tokens > most
        ):
            raise QueueFull(
                f"{len(self._waiting)} requests with {self.num_waiting_tokens} tokens are waiting, the most that may.",
                retry_after_ms=self._wait_ms(),
            )

    def _line_up(self, request: _Request) -> None:
        """With its next item."""
        tag = self._clock + request.items[request.num_taken].weight
        heapq.heappush(self._order, (tag, next(self._arrivals), request))

    def _cut(self, now: float) -> list[tuple[_Request, int]]:
        """The next batch: items by tag, while the budget lasts."""
        for request in [r for r in self._waiting if r.deadline is not None and r.deadline <= now]:
            self._fail(request, DeadlineExceeded("The deadline passed in the queue."))
        batch: list[tuple[_Request, int]] = []
        budget = self._max_batch_tokens
        while self._order:
            request = self._order[0][2]
            if request.answer.done():  # cancelled a moment ago, and not yet gone
                self._leave(request)
            if request not in self._waiting:
                heapq.heappop(self._order)
                continue
            num_tokens = request.items[request.num_taken].weight
            if batch and num_tokens > budget:
                break
            budget -= num_tokens
            self.num_waiting_tokens -= num_tokens
            batch.append((request, request.num_taken))
            heapq.heappop(self._order)
            self._clock += num_tokens
            request.num_taken += 1
            if request.num_left:
                self._line_up(request)
            else:
                self._waiting.remove(request)
        return batch

    async def _run_batch(self, batch: list[tuple[_Request, int]]) -> None:
        items = [request.items[index] for request, index in batch]
        requests = list(dict.fromkeys(request for request, _ in batch))
        self._observe(items)
        self.num_running_requests = len(requests)
        started = self._now()
        try:
            outputs = await self._outputs(items)
        finally:
            self.num_running_requests = 0
        ended = self._now()
        self._keep_pace(sum(item.weight for item in items), min(r.submitted for r in requests), ended)
        for (request, index), output in zip(batch, outputs, strict=True):
            if isinstance(output, _Failure):
                self._fail(request, Internal("The model's pass failed."), cause=output.cause)
            request.results[index] = Result(output, started - request.submitted, ended - started)
        for request in requests:
            if len(request.results) == len(request.items) and not request.answer.done():
                request.answer.set_result([request.results[i] for i in range(len(request.items))])

    async def _outputs(self, items: list[Item]) -> list[Any]:
        """An output or a failure for each item: a batch that fails runs again in halves, so its culprit fails alone.

        Where more than a few items fail it is the device that does, and what is left fails without being tried.
        """
        outputs: list[Any] = [None] * len(items)
        num_failures, most_failures = 0, 3 * len(items).bit_length()
        parts = [range(len(items))]
        while parts:
            part = parts.pop()
            try:
                found = await self._execute([items[index] for index in part])
            except Exception as error:
                num_failures += 1
                if len(part) > 1 and num_failures < most_failures:
                    half = len(part) // 2
                    parts += [part[half:], part[:half]]
                    continue
                found = [_Failure(error)] * len(part)
            outputs[part.start : part.stop] = found
        return outputs

    def _fail(self, request: _Request, error: Exception, *, cause: BaseException | None = None) -> None:
        error.__cause__ = cause
        self._leave(request)
        if not request.answer.done():
            request.answer.set_exception(error)

    def _leave(self, request: _Request) -> None:
        """Takes what is left of a request out of the queue; nothing where nothing is left."""
        if request in self._waiting:
            self._waiting.remove(request)
            self.num_waiting_tokens -= sum(item.weight for item in request.items[request.num_taken :])
            # Its place in the order is given up only when its tag comes up.
            request.items = ()

    def _keep_pace(self, num_tokens: int, submitted: float, ended: float) -> None:
        """How fast the queue moves: turns of other batchers count, times without work don't.

        A full batch is faster than a lone request, and a queue makes full ones: of the last batches, the best counts.
        """
        seconds = ended - max(submitted, self._free_since)
        pace = num_tokens / max(seconds, 1e-6)
        self._tokens_per_second = max(pace, self._tokens_per_second + (pace - self._tokens_per_second) / 8)
        self._free_since = ended

    def _wait_ms(self) -> int:
        """How long the queue will take at the pace of the last batches, at least a tenth of a second.

        And up to half as long again, by chance: callers that are refused together must not come back together.
        """
        pace = self._tokens_per_second or float(self._max_batch_tokens)
        return round(1000 * max(0.1, self.num_waiting_tokens / pace) * random.uniform(1, 1.5))
