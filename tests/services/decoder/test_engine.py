"""The engine with a scripted runner: each request ends exactly once, whatever happens to it."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from paged_memory import PagedMemory

from services.common.errors import Cancelled, DeadlineExceeded, Draining, Internal, JanusError, QueueFull
from services.common.metrics import DecoderMetrics
from services.decoder import engine as engine_module
from services.decoder.block_manager import BlockManager
from services.decoder.choice import Choice
from services.decoder.engine import Engine
from services.decoder.events import Delta, Ended, Event, Finished, Started
from services.decoder.generation import Generation
from services.decoder.scheduler import Batch, Scheduler
from services.decoder.sequence import FinishReason, Limits
from services.decoder.sequence import Sequence as Tokens
from services.decoder.text_stream import TextStream

STOP = 0


@dataclass(frozen=True)
class Drawn:
    """A draw of which nothing else is told."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Words:
    """Token n reads `n `; a token from 100 on is half a character that the next one completes."""

    def __init__(self) -> None:
        self._held = ""

    def append(self, token_ids: Sequence[int]) -> str:
        text = ""
        for token_id in token_ids:
            text, self._held = ("", f"{token_id} ") if token_id >= 100 else (self._held + f"{token_id} ", "")
        return text

    def finish(self) -> str:
        return self._held


class Script:
    """A runner: the next token of a sequence is its number of output tokens, plus one."""

    def __init__(self, draw: Callable[[Tokens], int] = lambda s: s.num_output_tokens + 1) -> None:
        self.draw = draw
        self.batches: list[list[int]] = []
        self.fails = False

    def execute(self, batch: Batch) -> list[Drawn | None]:
        time.sleep(0.001)  # a step takes time, so that something can happen meanwhile
        self.batches.append([row.num_new_tokens for row in batch.rows])
        if self.fails:
            raise ValueError("the secret prompt")
        return [Drawn(self.draw(row.sequence)) if row.is_caught_up else None for row in batch.rows]


class Machine(Script):
    """A runner with a clock of its own: a step takes 20 ms, and a millisecond for each token."""

    def __init__(self, draw: Callable[[Tokens], int] = lambda s: s.num_output_tokens + 1) -> None:
        super().__init__(draw)
        self.seconds = 1.0
        # What happens during a step, by its number; the engine hears of it before the next.
        self.during: dict[int, Callable[[], None]] = {}

    def now(self) -> float:
        return self.seconds

    def execute(self, batch: Batch) -> list[Drawn | None]:
        self.batches.append([row.num_new_tokens for row in batch.rows])
        self.during.get(len(self.batches), lambda: None)()
        self.seconds += 0.020 + 0.001 * batch.num_tokens
        return [Drawn(self.draw(row.sequence)) if row.is_caught_up else None for row in batch.rows]


class House:
    """An engine with its parts at hand."""

    def __init__(
        self,
        runner: Script,
        *,
        num_blocks: int = 64,
        max_batch_tokens: int = 16,
        max_running: int = 8,
        max_waiting: int = 100,
    ) -> None:
        self.blocks = BlockManager(num_blocks, 4)
        self.scheduler = Scheduler(
            self.blocks,
            max_batch_tokens=max_batch_tokens,
            max_running=max_running,
            max_waiting=max_waiting,
            max_waiting_tokens=9999,
        )
        self.runner = runner
        self.metrics = DecoderMetrics()
        now = runner.now if isinstance(runner, Machine) else time.monotonic
        self.engine = Engine(self.scheduler, runner, self.metrics, "model", step_seconds=0.1, now=now)

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"janus_{name}", {"model": "model", **labels})

    async def until(self, name: str, value: float) -> None:
        """Waits for a metric to have a value, a few seconds at most."""
        for _ in range(1000):
            if self.sample(name) == value:
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"{name} is not {value}")

    def submit(self, *lengths: int, **asked: Any) -> Generation:
        generation = self.make(*lengths, **asked)
        self.engine.submit(generation)
        return generation

    def make(
        self,
        num_prompt: int = 3,
        max_tokens: int = 5,
        stops: Sequence[str] = (),
        given: Sequence[int] = (),
        num_choices: int = 1,
        **limits: object,
    ) -> Generation:
        made = Limits(max_tokens, stop_ids=frozenset({STOP}), **limits)
        prompt = [1] * num_prompt + list(given)
        return Generation(
            [
                Choice(Tokens(list(prompt), num_prompt, made), TextStream(Words(), stops), index)
                for index in range(num_choices)
            ]
        )


@asynccontextmanager
async def house(runner: Script | None = None, **bounds: int) -> AsyncIterator[House]:
    """A running engine; afterwards every block must be free."""
    made = House(runner or Script(), **bounds)
    made.engine.start()
    yield made
    await asyncio.to_thread(made.engine.stop)
    made.blocks.check()


async def read(generation: Generation) -> list[Event]:
    return [event async for event in generation.events()]


async def test_a_request_from_start_to_end() -> None:
    async with house() as h:
        events = await read(h.submit(num_prompt=3, max_tokens=3))
    assert isinstance(events[0], Started)
    assert events[1:4] == [Delta((1,), "1 "), Delta((2,), "2 "), Delta((3,), "3 ")]
    assert events[4] == Finished(FinishReason.LENGTH)
    ended = events[5]
    assert isinstance(ended, Ended)
    assert (ended.num_prompt_tokens, ended.num_output_tokens) == (3, 3)
    assert ended.queue_seconds >= 0
    assert ended.prefill_seconds > 0
    assert len(events) == 6


async def test_a_stop_token_is_told_but_is_no_text() -> None:
    async with house(Script(lambda s: [5, STOP][s.num_output_tokens])) as h:
        events = await read(h.submit())
    assert events[1:4] == [Delta((5,), "5 "), Delta((STOP,), ""), Finished(FinishReason.STOP)]


async def test_a_stop_string_ends_the_request() -> None:
    async with house() as h:
        events = await read(h.submit(stops=["2 3"], max_tokens=9))
    assert "".join(e.text for e in events if isinstance(e, Delta)) == "1 "
    assert events[-2] == Finished(FinishReason.STOP)
    assert [e.token_ids for e in events if isinstance(e, Delta)] == [(1,), (2,), (3,)]


async def test_given_tokens_are_gone_on_from() -> None:
    """The same tokens and the same text come, whoever made the first of them."""
    async with house(Script(lambda s: 100 if s.num_output_tokens == 1 else s.num_output_tokens + 1)) as h:
        whole = [e for e in await read(h.submit(max_tokens=6)) if isinstance(e, Delta)]
        for cut in range(1, 6):
            given = [e.token_ids[0] for e in whole[:cut]]
            rest = [e for e in await read(h.submit(max_tokens=6, given=given)) if isinstance(e, Delta)]
            assert rest == whole[cut:]


async def test_given_tokens_that_are_whole_already() -> None:
    async with house() as h:
        events = await read(h.submit(max_tokens=2, given=[1, 2]))
        stopped = await read(h.submit(max_tokens=9, given=[1, STOP]))
    assert [type(e) for e in events] == [Started, Finished, Ended]
    assert stopped[1] == Finished(FinishReason.STOP)
    assert h.runner.batches == []


async def test_streams_share_steps() -> None:
    async with house() as h:
        generations = [h.submit(num_prompt=2, max_tokens=20) for _ in range(6)]
        await asyncio.gather(*(read(g) for g in generations))
        assert max(len(batch) for batch in h.runner.batches) == 6
        assert len(h.runner.batches) < 6 * 20


async def test_a_cancelled_request_frees_its_blocks() -> None:
    async with house() as h:
        generation = h.submit(max_tokens=200)
        events = generation.events()
        assert isinstance(await anext(events), Started)
        h.engine.cancel(generation)
        with pytest.raises(Cancelled):
            async for _ in events:
                pass
        h.engine.cancel(generation)
        assert len(await read(h.submit())) == 8
        assert h.blocks.num_used_blocks == 0


async def test_a_failed_step_fails_its_requests_and_the_engine_goes_on() -> None:
    async with house() as h:
        h.runner.fails = True
        with pytest.raises(Internal) as failed:
            await read(h.submit())
        assert "secret" not in failed.value.message
        h.runner.fails = False
        assert isinstance((await read(h.submit()))[-1], Ended)


async def test_the_queue_refuses_and_the_deadline_drops() -> None:
    async with house(max_running=1, max_waiting=2) as h:
        first = h.submit(max_tokens=200)
        events = first.events()
        await anext(events)
        late = h.submit(deadline=0.0)
        with pytest.raises(DeadlineExceeded):
            await read(late)
        waiting = [h.submit(), h.submit()]
        with pytest.raises(QueueFull):
            await read(h.submit())
        h.engine.cancel(first)
        for generation in waiting:
            assert isinstance((await read(generation))[-1], Ended)


async def test_a_long_prompt_never_stalls_streams() -> None:
    """Steps grow to the time they may take, and no further."""
    machine = Machine()
    async with house(machine, num_blocks=4000, max_batch_tokens=2048, max_running=9) as h:
        prompt = h.make(num_prompt=3000, max_tokens=1)
        machine.during[10] = lambda: h.engine.submit(prompt)
        streams = [h.submit(max_tokens=400) for _ in range(8)]
        assert isinstance((await read(prompt))[-1], Ended)
        await asyncio.gather(*(read(stream) for stream in streams))
    cut = [sum(batch) for batch in machine.batches if len(batch) == 9]
    assert all(batch.count(1) == 8 for batch in machine.batches if len(batch) == 9)
    assert max(cut) <= 100, "what 0.12 s are enough for"
    assert sorted(cut)[len(cut) // 2] == pytest.approx(80, abs=8)
    assert len(cut) < 50


async def test_a_prompt_that_stalls_nobody_is_not_cut() -> None:
    machine = Machine()
    async with house(machine, num_blocks=4000, max_batch_tokens=2048) as h:
        await read(h.submit(num_prompt=1500, max_tokens=1))
    assert machine.batches == [[1500]]


async def test_a_refusal_says_how_long_the_queue_takes() -> None:
    """The last ones wrote a tenth of what they might have, and so do those that wait."""
    machine = Machine(lambda s: STOP if s.num_output_tokens == 19 else 1)
    async with house(machine, num_blocks=4000, max_running=4, max_waiting=20) as h:
        generations = [h.make(num_prompt=5, max_tokens=200) for _ in range(40)]
        refused = h.make(num_prompt=5, max_tokens=200)
        filled: list[float] = []

        def fill() -> None:
            filled.append(machine.seconds)
            for generation in generations[20:]:
                h.engine.submit(generation)
            h.engine.submit(refused)

        machine.during[5 * 20] = fill
        for generation in generations[:20]:
            h.engine.submit(generation)
        with pytest.raises(QueueFull) as full:
            await read(refused)
        for generation in generations:
            await read(generation)
    assert full.value.retry_after_ms is not None
    waited = machine.seconds - filled[0]
    assert waited > 1
    assert 0.8 * waited <= full.value.retry_after_ms / 1000 <= 1.3 * 1.5 * waited


async def test_a_deadline_that_can_not_be_met_costs_no_step() -> None:
    machine = Machine()
    async with house(machine, num_blocks=4000, max_batch_tokens=512) as h:
        await read(h.submit(num_prompt=500, max_tokens=1))
        machine.batches.clear()
        with pytest.raises(DeadlineExceeded):
            await read(h.submit(num_prompt=1000, max_tokens=1, deadline=machine.seconds + 0.5))
        assert machine.batches == []
        await read(h.submit(num_prompt=1000, max_tokens=1, deadline=machine.seconds + 2))


async def test_what_was_found_in_the_cache_is_told_and_counted() -> None:
    async with house() as h:
        first, again = [await read(h.submit(num_prompt=10, max_tokens=3)) for _ in range(2)]
        for events, num_cached in ((first, 0), (again, 8)):
            started, ended = events[0], events[-1]
            assert isinstance(started, Started)
            assert isinstance(ended, Ended)
            assert started.num_cached_tokens == ended.num_cached_tokens == num_cached
        assert h.sample("prefix_cache_queries_total") == 20
        assert h.sample("prefix_cache_hits_total") == 8
        await h.until("kv_cache_usage_ratio", 0)
        states = {state: h.sample("kv_cache_blocks", state=state) for state in ("used", "cached", "free")}
        assert states == {"used": 0, "cached": 3, "free": 61}


async def test_who_made_room_goes_on_and_is_counted() -> None:
    async with house(num_blocks=10) as h:
        generations = [h.submit(num_prompt=6, max_tokens=20) for _ in range(3)]
        for events in await asyncio.gather(*(read(generation) for generation in generations)):
            assert [e.token_ids[0] for e in events if isinstance(e, Delta)] == list(range(1, 21))
        assert (h.sample("preemptions_total") or 0) > 0


async def test_a_drain_refuses_the_new_and_keeps_the_old() -> None:
    async with house() as h:
        running = h.submit(max_tokens=100)
        events = running.events()
        await anext(events)
        h.engine.drain()
        with pytest.raises(Draining):
            await read(h.submit())
        rest = [event async for event in events]
        assert isinstance(rest[-1], Ended)


async def test_a_stop_ends_what_still_runs() -> None:
    h = House(Script())
    h.engine.start()
    generation = h.submit(max_tokens=200)
    await anext(generation.events())
    await asyncio.to_thread(h.engine.stop)
    with pytest.raises(Draining):
        await read(generation)
    h.blocks.check()


async def test_who_comes_after_the_stop_is_refused() -> None:
    h = House(Script())
    h.engine.start()
    await asyncio.to_thread(h.engine.stop)
    with pytest.raises(Draining):
        await read(h.submit())


async def test_text_that_fails_ends_its_request_alone() -> None:
    class Broken(Words):
        def append(self, token_ids: Sequence[int]) -> str:
            raise RuntimeError("the secret answer")

    async with house() as h:
        other = h.submit(max_tokens=30)
        broken = Generation([Choice(Tokens([1, 1], 2, Limits(9)), TextStream(Broken()))])
        h.engine.submit(broken)
        with pytest.raises(Internal) as failed:
            await read(broken)
        assert "secret" not in failed.value.message
        assert isinstance((await read(other))[-1], Ended)


async def test_a_failed_turn_fails_all_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(num_tokens: int | None) -> Batch:
        monkeypatch.undo()
        raise AssertionError("our own mistake")

    async with house(max_running=1) as h:
        generations = [h.submit(max_tokens=200), h.submit()]
        await anext(generations[0].events())
        monkeypatch.setattr(h.scheduler, "schedule", fail)
        for generation in generations:
            with pytest.raises(Internal):
                await read(generation)
        assert isinstance((await read(h.submit()))[-1], Ended)


async def test_an_idle_engine_shows_its_cache() -> None:
    async with house() as h:
        for name in ("kv_cache_usage_ratio", "requests_running", "requests_waiting", "waiting_tokens"):
            await h.until(name, 0)


async def test_a_reader_that_takes_nothing_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MAX_BUFFERED_EVENTS", 20)
    async with house(num_blocks=4000) as h:
        await h.until("requests_running", 0)
        generation = h.submit(max_tokens=10_000)
        await h.until("requests_running", 1)
        await h.until("requests_running", 0)
        with pytest.raises(Cancelled, match="takes nothing"):
            await read(generation)


async def test_choices_share_their_prompt_and_end_one_by_one() -> None:
    """Choice c writes c + 1 tokens; the prompt of two whole blocks and a half is computed once, then only its rest."""
    lengths: dict[int, int] = {}

    def draw(tokens: Tokens) -> int:
        place = lengths.setdefault(id(tokens), len(lengths))
        return STOP if tokens.num_output_tokens == place else 7

    async with house(Script(draw)) as h:
        generation = h.submit(10, max_tokens=9, num_choices=3)
        events = await read(generation)
        assert h.runner.batches[:2] == [[10], [2, 2]]
        assert isinstance(events[0], Started)
        assert [e for e in events if isinstance(e, Finished)] == [Finished(FinishReason.STOP, c) for c in range(3)]
        for choice in range(3):
            mine = [e for e in events if isinstance(e, Delta | Finished) and e.choice == choice]
            assert [e.token_ids for e in mine[:-1]] == [(7,)] * choice + [(STOP,)]
            assert isinstance(mine[-1], Finished)
        assert isinstance(events[-1], Ended)
        assert (events[-1].num_prompt_tokens, events[-1].num_output_tokens) == (10, 6)
        assert events[-1].num_cached_tokens == 0
        assert h.sample("prefix_cache_hits_total") == 16
        assert h.sample("time_to_first_token_seconds_count") == 1


async def test_choices_that_were_whole_are_told_at_the_start() -> None:
    async with house() as h:
        done = [7, 7, 7]
        choices = [
            Choice(Tokens([1, 1, *(done if i != 1 else [])], 2, Limits(3)), TextStream(Words()), i) for i in range(3)
        ]
        generation = Generation(choices)
        h.engine.submit(generation)
        events = await read(generation)
        length = FinishReason.LENGTH
        assert isinstance(events[0], Started)
        assert events[1:3] == [Finished(length, 0), Finished(length, 2)]
        assert [type(e) for e in events[3:]] == [Delta, Delta, Delta, Finished, Ended]
        assert events[-2] == Finished(length, 1)


async def test_choices_that_are_late_end_their_request_once() -> None:
    """One runs, two wait for its place until their deadline has passed."""
    machine = Machine()
    async with house(machine, max_running=1) as h:
        generation = h.submit(max_tokens=200, num_choices=3, deadline=machine.seconds + 0.5)
        with pytest.raises(DeadlineExceeded):
            await read(generation)
        assert isinstance((await read(h.submit()))[-1], Ended)
        assert generation.num_buffered_events == 0


async def test_a_choice_whose_text_fails_ends_its_request_alone() -> None:
    class Broken(Words):
        def append(self, token_ids: Sequence[int]) -> str:
            raise RuntimeError("the secret answer")

    async with house() as h:
        other = h.submit(max_tokens=30)
        texts = [Words(), Words(), Broken(), Words()]
        broken = Generation(
            [Choice(Tokens([1, 1], 2, Limits(9)), TextStream(text), index) for index, text in enumerate(texts)]
        )
        h.engine.submit(broken)
        with pytest.raises(Internal):
            await read(broken)
        assert isinstance((await read(other))[-1], Ended)
        assert broken.num_buffered_events == 0


async def test_a_failed_step_ends_all_choices_at_once() -> None:
    async with house(num_blocks=200) as h:
        generation = h.submit(max_tokens=500, num_choices=4)
        events = generation.events()
        for _ in range(12):
            await anext(events)
        h.runner.fails = True
        with pytest.raises(Internal):
            await read(generation)
        h.runner.fails = False
        assert isinstance((await read(h.submit()))[-1], Ended)


class Reader(Script):
    """A runner whose cache reads back, and which fails when told to."""

    def __init__(self, block_size: int, draw: Callable[[Tokens], int]) -> None:
        super().__init__(draw)
        self.memory = PagedMemory(block_size, draw)
        self.misread: list[AssertionError] = []

    def execute(self, batch: Batch) -> list[Drawn | None]:
        super().execute(batch)
        try:
            return [None if token is None else Drawn(token) for token in self.memory.execute(batch)]
        except AssertionError as error:
            self.misread.append(error)
            raise


@pytest.mark.parametrize("num_blocks", [16, 64])
@pytest.mark.parametrize("seed", range(6))
async def test_every_request_ends_exactly_once(seed: int, num_blocks: int) -> None:
    """Random arrivals, lengths, cancels, failures and given tokens; one terminal event each, no block lost."""
    chance = random.Random(seed)
    reader = Reader(4, lambda s: chance.choice([1, 2, 3, STOP]))
    async with house(reader, num_blocks=num_blocks, max_waiting=12) as h:

        async def one() -> str:
            await asyncio.sleep(chance.random() * 0.05)
            given, num_choices = [1] * chance.randrange(3), chance.choice([1, 1, 2, 5])
            lengths = chance.randrange(1, 30), chance.randrange(1, 30)
            generation = h.submit(*lengths, stops=["3 1"], given=given, num_choices=num_choices)
            cancel_after = chance.choice([None, None, 1, 3])
            seen: list[Event] = []
            try:
                async for event in generation.events():
                    seen.append(event)
                    if len(seen) == cancel_after:
                        h.engine.cancel(generation)
            except JanusError as error:
                assert not any(isinstance(event, Ended) for event in seen)
                return error.code
            assert [type(e) for e in seen[-2:]] == [Finished, Ended]
            assert sum(isinstance(e, Ended) for e in seen) == 1
            assert sorted(e.choice for e in seen if isinstance(e, Finished)) == list(range(num_choices))
            assert [i for i, e in enumerate(seen) if isinstance(e, Started)] == [0]
            return "ended"

        async def trouble() -> None:
            for _ in range(5):
                await asyncio.sleep(0.01)
                h.runner.fails = not h.runner.fails
            h.runner.fails = False

        outcomes, _ = await asyncio.gather(asyncio.gather(*(one() for _ in range(60))), trouble())
    assert reader.misread == []
    assert set(outcomes) <= {"ended", "cancelled", "internal", "queue_full"}
    assert outcomes.count("ended") > 0
