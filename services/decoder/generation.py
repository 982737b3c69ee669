"""One request in the engine: its sequence, its text, its clock, and the queue that its events leave by."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from services.decoder.events import Delta, Ended, Event, Failed, Finished, Started
from services.decoder.sequence import FinishReason, Sequence
from services.decoder.text_stream import TextStream


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
    """Made by a servicer in the event loop, filled by the engine's thread, read by `events()`."""

    def __init__(self, sequence: Sequence, text: TextStream) -> None:
        self.sequence = sequence
        self.text = text
        self.clock = Clock()
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        # Tokens that another worker made and told: their text is out, but stop strings and characters go on from it.
        for count, token_id in enumerate(sequence.token_ids[sequence.num_prompt_tokens :], start=1):
            self.text.append(token_id, may_stop=count >= sequence.limits.min_tokens)

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
        return min(self.sequence.num_cached_tokens, self.sequence.num_prompt_tokens)

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

    def advance(self, now: float) -> tuple[list[Event], FinishReason | None]:
        """The events of the token that was just drawn, and why it is the last, if it is."""
        events: list[Event] = []
        if not self.clock.first_token:
            self.clock.first_token = now
            events.append(self._started())
        self.clock.last_token = now
        sequence = self.sequence
        token_id = sequence.token_ids[-1]
        reason = sequence.finish_reason()
        if reason is FinishReason.STOP:
            piece = ""  # the token that stops is no text
        else:
            piece = self.text.append(token_id, may_stop=sequence.num_output_tokens >= sequence.limits.min_tokens)
            reason = FinishReason.STOP if self.text.is_stopped else reason
        if reason is not None:
            piece += self.text.finish()
            reason = FinishReason.STOP if self.text.is_stopped else reason
        events.append(Delta((token_id,), piece))
        return (events + self._ending(reason) if reason else events), reason

    def already_over(self) -> FinishReason | None:
        """Why nothing is left to do for tokens that were given, if it is so."""
        return FinishReason.STOP if self.text.is_stopped else self.sequence.finish_reason()

    def end_at_once(self, reason: FinishReason) -> list[Event]:
        """The events of a request whose given tokens are whole already."""
        return [self._started(), *self._ending(reason)]

    def _started(self) -> Started:
        return Started(self.num_cached_tokens, self.clock.queue_seconds, self.clock.prefill_seconds)

    def _ending(self, reason: FinishReason) -> list[Event]:
        return [
            Finished(reason),
            Ended(
                num_prompt_tokens=self.sequence.num_prompt_tokens,
                num_cached_tokens=self.num_cached_tokens,
                num_output_tokens=self.sequence.num_output_tokens,
                queue_seconds=self.clock.queue_seconds,
                prefill_seconds=self.clock.prefill_seconds,
                decode_seconds=self.clock.decode_seconds,
            ),
        ]
