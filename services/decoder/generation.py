"""One request in the engine: its choices, its clock, and the queue that its events leave by."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from services.decoder.choice import Choice, Draw
from services.decoder.events import Ended, Event, Failed, Started


@dataclass(slots=True)
class Clock:
    """Monotonic times in seconds; 0 where it has not come to that."""

    submitted: float = field(default_factory=time.monotonic)
    first_step: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0

    @property
    def queue_seconds(self) -> float:
        return max(0.0, (self.first_step or time.monotonic()) - self.submitted)

    @property
    def prefill_seconds(self) -> float:
        return max(0.0, self.first_token - self.first_step)

    @property
    def decode_seconds(self) -> float:
        return max(0.0, self.last_token - self.first_token)


class Generation:
    """Made by a servicer in the event loop, filled by the engine's thread, read by `events()`.

    Its choices share the prompt: the first of those that still have to be computed leads, and the others begin with its
    first token, when they find in the cache what it computed.
    """

    def __init__(self, choices: Sequence[Choice]) -> None:
        self.choices = tuple(choices)
        left = [choice for choice in choices if choice.finish_reason is None]
        self.leader = left[0] if left else self.choices[0]
        self.followers = tuple(left[1:])
        self.clock = Clock()
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    @property
    def num_buffered_events(self) -> int:
        """Events that the reader has not taken yet."""
        return self._queue.qsize()

    @property
    def num_cached_tokens(self) -> int:
        """Of the prompt: what was there before it was computed."""
        sequence = self.leader.sequence
        return min(sequence.num_cached_tokens, sequence.num_prompt_tokens)

    @property
    def has_ended(self) -> bool:
        return all(choice.finish_reason is not None for choice in self.choices)

    def deliver(self, events: list[Event]) -> None:
        """Hands events to the reader. Runs in the event loop."""
        for event in events:
            self._queue.put_nowait(event)

    async def events(self) -> AsyncIterator[Event]:
        """Every event until the terminal one. Raises: JanusError, when the request failed."""
        while True:
            event = await self._queue.get()
            if isinstance(event, Failed):
                raise event.error
            yield event
            if isinstance(event, Ended):
                return

    def advance(self, choice: Choice, draw: Draw, now: float) -> list[Event]:
        """The events of the token that was just drawn for a choice."""
        events: list[Event] = []
        if not self.clock.first_token:
            self.clock.first_token = now
            events += self._opening()
        self.clock.last_token = now
        events += choice.advance(draw, now)
        return [*events, self._ended()] if self.has_ended else events

    def end_at_once(self) -> list[Event]:
        """The events of a request whose choices are whole already."""
        return [*self._opening(), self._ended()]

    def _opening(self) -> list[Event]:
        """That it has started, and which choices were whole before."""
        clock = self.clock
        started = Started(self.num_cached_tokens, clock.queue_seconds, clock.prefill_seconds)
        return [started, *(choice.finished() for choice in self.choices if choice.finish_reason is not None)]

    def _ended(self) -> Ended:
        return Ended(
            num_prompt_tokens=self.leader.sequence.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_output_tokens=sum(choice.sequence.num_output_tokens for choice in self.choices),
            queue_seconds=self.clock.queue_seconds,
            prefill_seconds=self.clock.prefill_seconds,
            decode_seconds=self.clock.decode_seconds,
        )
