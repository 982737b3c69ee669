"""Bulk streams without a network: for any order of ends, answers come in the order of the requests."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from structlog.contextvars import get_contextvars
from structlog.testing import capture_logs

from services.common import bulk
from services.common.bulk import answer_in_order, answer_stream, answer_when_there_is_room
from services.common.errors import InvalidRequest, JanusError, QueueFull
from services.common.logging import begin_request, describe_request
from services.common.metrics import ServiceMetrics


async def settle() -> None:
    """Lets everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


class Script:
    """Requests are letters of a text; an answer waits until the test gives it."""

    def __init__(self, text: Sequence[str], window: int = 3, window_bytes: int = 1000) -> None:
        self.text = text
        self.num_read = 0
        self.open: dict[int, asyncio.Future[str]] = {}
        self.num_cancelled = 0
        self.was_closed = False
        self.goes_on_reading = True
        self.answers = answer_in_order(
            self._requests(), self._answer, num_bytes=len, window=window, window_bytes=window_bytes
        )

    async def _requests(self) -> AsyncIterator[str]:
        try:
            for letter in self.text:
                self.num_read += 1
                yield letter
            if not self.goes_on_reading:
                raise ZeroDivisionError
        finally:
            self.was_closed = True

    async def _answer(self, letter: str, number: int) -> str:
        assert letter == self.text[number]
        self.open[number] = asyncio.get_running_loop().create_future()
        try:
            return await self.open[number]
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            del self.open[number]

    def give(self, number: int) -> None:
        self.open[number].set_result(f"{self.text[number]}{number}")


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.integers(0, 12), st.integers(1, 5), st.data())
def test_any_order_of_ends_gives_the_order_of_the_requests(num: int, window: int, data: st.DataObject) -> None:
    async def run() -> None:
        text = "abcdefghijkl"[:num]
        script = Script(text, window)
        taken: list[str] = []
        taking: asyncio.Task[str] | None = None
        while len(taken) < num or taking is not None:
            taking = taking or asyncio.create_task(anext(script.answers))
            await settle()
            if taking.done():
                taken.append(taking.result())
                taking = None
                if len(taken) == num:
                    break
                continue
            untaken = script.num_read - len(taken)
            assert untaken == min(window, num - len(taken)), "the window is used, and no more than that"
            script.give(data.draw(st.sampled_from(sorted(script.open))))
        assert taken == [f"{letter}{number}" for number, letter in enumerate(text)]
        with pytest.raises(StopAsyncIteration):
            await anext(script.answers)
        assert script.was_closed

    asyncio.run(run())


async def test_a_slow_answer_holds_reading_back() -> None:
    script = Script("abcdefgh")
    first = asyncio.create_task(anext(script.answers))
    await settle()
    assert sorted(script.open) == [0, 1, 2]
    script.give(1)
    script.give(2)
    await settle()
    assert (script.num_read, first.done()) == (3, False)
    script.give(0)
    assert await first == "a0"
    await settle()
    assert script.num_read == 3, "a reader that takes nothing holds it back, too"
    second = await anext(script.answers)
    await settle()
    assert (second, script.num_read, sorted(script.open)) == ("b1", 4, [3])
    await script.answers.aclose()


async def test_large_requests_are_read_one_by_one_and_small_ones_as_far_as_the_bytes_go() -> None:
    script = Script(["x" * 25, "x" * 4, "x" * 4, "x" * 4, "x"], window=4, window_bytes=10)
    taking = asyncio.create_task(anext(script.answers))
    for number, num_read in enumerate([1, 4, 5, 5, 5]):
        await settle()
        assert script.num_read == num_read
        script.give(number)
        assert (await taking).endswith(str(number))
        taking = asyncio.create_task(anext(script.answers))
    with pytest.raises(StopAsyncIteration):
        await taking


async def test_answers_come_while_the_client_sends_nothing() -> None:
    more = asyncio.Event()

    async def requests() -> AsyncIterator[int]:
        yield 1
        yield 2
        await more.wait()
        yield 3

    async def answer(request: int, number: int) -> int:
        return 10 * request

    answers = answer_in_order(requests(), answer, num_bytes=int.bit_length)
    assert [await anext(answers), await anext(answers)] == [10, 20]
    third = asyncio.create_task(anext(answers))
    await settle()
    assert not third.done()
    more.set()
    assert await third == 30


@pytest.mark.parametrize("is_at_a_yield", [True, False])
async def test_closing_ends_what_runs(is_at_a_yield: bool) -> None:
    """A consumer that is cancelled while it waits, or one that takes no more."""
    before = asyncio.all_tasks()
    script = Script("abcdefgh")
    first = asyncio.create_task(anext(script.answers))
    await settle()
    if is_at_a_yield:
        script.give(0)
        assert await first == "a0"
        await script.answers.aclose()
        assert script.num_cancelled == 2
    else:
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert script.num_cancelled == 3
    assert not script.open
    assert asyncio.all_tasks() == before


async def test_reading_that_fails_is_told_after_the_answers() -> None:
    script = Script("ab")
    script.goes_on_reading = False
    first = asyncio.create_task(anext(script.answers))
    await settle()
    script.give(1)
    script.give(0)
    assert await first == "a0"
    assert await anext(script.answers) == "b1"
    with pytest.raises(ZeroDivisionError):
        await anext(script.answers)


async def test_an_answer_that_fails_ends_it() -> None:
    script = Script("abc")
    first = asyncio.create_task(anext(script.answers))
    await settle()
    script.open[0].set_exception(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await first
    assert not script.open


def failing(*errors: Exception) -> tuple[Callable[[], Awaitable[str]], list[float]]:
    """Raises one after the other, then answers; and when it was asked."""
    left, asked = list(errors), []

    async def answer() -> str:
        asked.append(asyncio.get_running_loop().time())
        if left:
            raise left.pop(0)
        return "done"

    return answer, asked


async def test_a_full_queue_is_waited_for() -> None:
    answer, asked = failing(QueueFull("full", retry_after_ms=120), QueueFull("full", retry_after_ms=0))
    assert await answer_when_there_is_room(answer) == "done"
    first, second, third = asked
    assert second - first >= 0.115
    assert third - second >= 0.095


async def test_those_who_wait_do_not_come_back_at_once() -> None:
    waiting = [failing(QueueFull("full", retry_after_ms=100)) for _ in range(64)]
    await asyncio.gather(*(answer_when_there_is_room(answer) for answer, _ in waiting))
    waits = [again - first for _, (first, again) in waiting]
    assert min(waits) >= 0.095
    assert max(waits) - min(waits) > 0.05


async def test_a_long_wait_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "LONGEST_WAIT_SECONDS", 0.01)
    answer, asked = failing(QueueFull("full", retry_after_ms=3_600_000))
    assert await asyncio.wait_for(answer_when_there_is_room(answer), 5) == "done"
    assert len(asked) == 2


async def test_other_errors_stand_in_the_answers_place() -> None:
    wrong = InvalidRequest("'inputs' is wrong.", param="inputs")
    assert await answer_when_there_is_room(failing(wrong)[0]) is wrong
    with capture_logs() as logs:
        ours = await answer_when_there_is_room(failing(KeyError("the secret"))[0])
    assert isinstance(ours, JanusError)
    assert (ours.code, "secret" in ours.message) == ("internal", False)
    assert isinstance(logs[0]["exc_info"], KeyError)


@dataclass
class Sent:
    """As a message of a stream has it."""

    request: str

    def ByteSize(self) -> int:
        return len(self.request)


@dataclass
class Response:
    """As the messages of answers are made."""

    sequence: int
    response: object = None
    error: dict[str, object] = field(default_factory=dict)


async def test_each_request_is_counted_and_the_stream_says_how_many() -> None:
    metrics = ServiceMetrics()

    async def requests() -> AsyncIterator[Sent]:
        for text in ("a", "", "b"):
            yield Sent(text)

    async def answer(text: str, number: int) -> str:
        describe_request(model=f"model-{number}")
        if not text:
            raise InvalidRequest("'inputs' is empty.", param="inputs")
        return text.upper()

    def begin(text: str, number: int) -> Callable[[], Awaitable[str]]:
        return lambda: answer(text, number)

    def count(code: str, model: str) -> Any:
        labels = {"task": "classify", "model": model, "code": code, "transport": "grpc"}
        return metrics.registry.get_sample_value("janus_requests_total", labels)

    begin_request(request_id="r")
    answers = answer_stream(requests(), begin, Response, task="classify", metrics=metrics)
    assert [response async for response in answers] == [
        Response(0, "A"),
        Response(1, error={"code": "invalid_request", "message": "'inputs' is empty.", "param": "inputs"}),
        Response(2, "B"),
    ]
    assert [count("ok", "model-0"), count("invalid_request", "model-1"), count("ok", "model-2")] == [1, 1, 1]
    assert get_contextvars() == {"request_id": "r", "num_answers": 3}


async def test_what_a_client_leaves_behind_is_counted_as_cancelled() -> None:
    metrics = ServiceMetrics()

    async def requests() -> AsyncIterator[Sent]:
        for text in "ab":
            yield Sent(text)

    def begin(text: str, number: int) -> Callable[[], Awaitable[bool]]:
        return asyncio.Event().wait

    answers = answer_stream(requests(), begin, Response, task="classify", metrics=metrics)
    first = asyncio.create_task(anext(answers))
    await settle()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    labels = {"task": "classify", "model": "", "code": "cancelled", "transport": "grpc"}
    assert metrics.registry.get_sample_value("janus_requests_total", labels) == 2
