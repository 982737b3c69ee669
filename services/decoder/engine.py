"""The loop: schedule, execute, commit, tell; in a thread of its own, one step after another while there is work.

Servicers talk to it by a queue of commands; events go back to their event loop once a step. Each request ends in
exactly one `Ended` or `Failed`, whatever happens: finished, cancelled, expired, a failed step, a stop. What is in
`_generations` has not ended yet, and nothing else is told anything; `_owners` says whose the scheduler's sequences are.
"""

import queue
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Protocol

from services.common.errors import Cancelled, DeadlineExceeded, Draining, Internal, JanusError, QueueFull
from services.common.logging import get_logger
from services.common.metrics import DecoderMetrics
from services.decoder.choice import Choice, Draw
from services.decoder.events import Event, Failed
from services.decoder.generation import Generation
from services.decoder.scheduler import Batch, Scheduler
from services.decoder.sequence import Sequence
from services.decoder.work_clock import WorkClock

# A reader this far behind has stalled: its stream ends rather than fill the memory.
MAX_BUFFERED_EVENTS = 4096
_log = get_logger(__name__)


class StepRunner(Protocol):
    """What runs a batch: `services.decoder.runner.Runner`, or a fake."""

    def execute(self, batch: Batch) -> Items[Draw | None]:
        """What was drawn for each row that caught up, None for the others."""
        ...


class Engine:
    """Owns the scheduler once started; nothing else may touch it.

    `step_seconds` is what a step may take while streams run, unless they alone take more than half of it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: StepRunner,
        metrics: DecoderMetrics,
        model_id: str,
        *,
        step_seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._metrics = metrics
        self._model_id = model_id
        self._step_seconds = step_seconds
        self._now = now
        self._work = WorkClock()
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._generations: set[Generation] = set()
        self._owners: dict[Sequence, tuple[Generation, Choice]] = {}
        self._is_draining = False
        self._is_stopped = False
        self._is_closed = False
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, generation: Generation) -> None:
        """Queues a request; what becomes of it comes as events."""
        with self._closing:
            if not self._is_closed:
                self._commands.put(lambda: self._admit(generation))
                return
        self._tell(generation, [Failed(Draining("The worker stopped."))])

    def cancel(self, generation: Generation) -> None:
        """Ends a request whose reader is gone; its blocks are free at the next step. Nothing if it is over."""
        self._commands.put(lambda: self._fail(generation, Cancelled("The caller went away.")))

    def drain(self) -> None:
        """Refuses new requests from now on; those that are in go on."""
        self._commands.put(lambda: setattr(self, "_is_draining", True))

    def join(self) -> None:
        """Waits until the loop has ended."""
        self._thread.join()

    def stop(self) -> None:
        """Ends the loop; what still runs fails with `draining`."""
        self._commands.put(lambda: setattr(self, "_is_stopped", True))
        self._thread.join()
        with self._closing:
            self._is_closed = True
        self._obey(is_waiting=False)  # who came after the last turn is refused

    def _run(self) -> None:
        self._measure()
        while not self._is_stopped:
            try:
                self._turn()
            except Exception:
                _log.exception("a turn of the engine failed", num_requests=len(self._generations))
                self._fail_all(Internal("The engine failed."))
            self._measure()
        self._fail_all(Draining("The worker stopped."))
        self._measure()

    def _turn(self) -> None:
        self._obey(is_waiting=self._scheduler.is_idle)
        for sequence in self._scheduler.drop_late(self._now(), self._work.at_least):
            late = DeadlineExceeded("The deadline would pass before the next token, or has passed in the queue.")
            if sequence in self._owners:  # unless another of its request's was late as well
                self._fail(self._owners[sequence][0], late)
        batch = self._scheduler.schedule(self._budget())
        self._metrics.preemptions_total.labels(self._model_id).inc(len(batch.preempted))
        if batch.rows and not self._is_stopped:
            self._step(batch)

    def _budget(self) -> int | None:
        """The tokens of a step: none are too many while there is no stream to stall."""
        num_streams = self._scheduler.num_streams
        if num_streams == 0:
            return None
        return self._work.tokens_within(max(self._step_seconds, 2 * self._work.seconds_for(num_streams)))

    def _obey(self, *, is_waiting: bool) -> None:
        """Carries out the commands that are there; waits for one when there is no other work."""
        try:
            command = self._commands.get(block=is_waiting)
            while True:
                command()
                command = self._commands.get(block=False)
        except queue.Empty:
            return

    def _admit(self, generation: Generation) -> None:
        self._generations.add(generation)
        if self._is_draining or self._is_stopped:
            self._fail(generation, Draining("The worker is draining."))
            return
        if generation.has_ended:
            self._forget(generation)
            self._tell(generation, generation.end_at_once())
            return
        leader = generation.leader
        try:
            self._scheduler.add(leader.sequence)
        except QueueFull as full:
            wait_ms = self._work.wait_ms(self._scheduler.num_waiting_work)
            self._fail(generation, QueueFull(full.message, retry_after_ms=wait_ms))
            return
        self._owners[leader.sequence] = (generation, leader)

    def _step(self, batch: Batch) -> None:
        started = self._now()
        for row in batch.rows:
            clock = self._owners[row.sequence][0].clock
            clock.first_step = clock.first_step or started
        try:
            drawn = self._runner.execute(batch)
        except Exception:
            _log.exception("a step failed", num_rows=len(batch.rows), num_tokens=batch.num_tokens)
            for generation in {self._owners[row.sequence][0] for row in batch.rows}:
                self._fail(generation, Internal("The model's step failed."))
            return
        self._scheduler.commit(batch, [None if draw is None else draw.token for draw in drawn])
        now = self._now()
        self._work.observe(batch.num_tokens, now - started)
        self._metrics.batch_size.labels(self._model_id).observe(len(batch.rows))
        self._metrics.batch_tokens.labels(self._model_id).observe(batch.num_tokens)
        told: dict[Generation, list[Event]] = {}
        for row, draw in zip(batch.rows, drawn, strict=True):
            if draw is None or row.sequence not in self._owners:  # its request failed with another of its rows
                continue
            generation, choice = self._owners[row.sequence]
            try:
                told.setdefault(generation, []).extend(self._advance(generation, choice, draw, now))
            except Exception:
                _log.exception("a token could not be told")
                told.pop(generation, None)
                self._fail(generation, Internal("The answer could not be told."))
        self._tell_all(told)

    def _advance(self, generation: Generation, choice: Choice, draw: Draw, now: float) -> list[Event]:
        clock = generation.clock
        is_first, previous = not clock.first_token, choice.last_token_at
        events = generation.advance(choice, draw, now)
        self._metrics.generated_tokens_total.labels(self._model_id).inc()
        if not previous:
            self._count_cached(choice.sequence)
        else:
            self._metrics.inter_token_latency_seconds.labels(self._model_id).observe(now - previous)
        if is_first:
            self._metrics.time_to_first_token_seconds.labels(self._model_id).observe(now - clock.submitted)
            self._metrics.prefill_duration_seconds.labels(self._model_id).observe(clock.prefill_seconds)
            for follower in generation.followers:
                self._scheduler.add_beside(follower.sequence, choice.sequence)
                self._owners[follower.sequence] = (generation, follower)
        if choice.finish_reason is not None:
            self._scheduler.remove(choice.sequence)
            del self._owners[choice.sequence]
            if choice.seconds_per_token is not None:
                self._metrics.time_per_output_token_seconds.labels(self._model_id).observe(choice.seconds_per_token)
        if generation.has_ended:
            self._forget(generation)
            self._metrics.decode_duration_seconds.labels(self._model_id).observe(clock.decode_seconds)
        elif generation.num_buffered_events > MAX_BUFFERED_EVENTS:
            self._forget(generation)
            events.append(Failed(Cancelled("The reader takes nothing.")))
        return events

    def _count_cached(self, sequence: Sequence) -> None:
        """When its first token is drawn: what the cache was asked for, and what it had."""
        if self._scheduler.block_manager.is_caching:
            num_asked = sequence.num_tokens - 1
            self._metrics.prefix_cache_queries_total.labels(self._model_id).inc(num_asked)
            self._metrics.prefix_cache_hits_total.labels(self._model_id).inc(sequence.num_cached_tokens)

    def _fail(self, generation: Generation, error: JanusError) -> None:
        if generation in self._generations:
            self._forget(generation)
            self._tell(generation, [Failed(error)])

    def _fail_all(self, error: JanusError) -> None:
        for generation in list(self._generations):
            self._fail(generation, error)

    def _forget(self, generation: Generation) -> None:
        self._generations.remove(generation)
        for choice in generation.choices:
            if self._owners.pop(choice.sequence, None) is not None:
                self._scheduler.remove(choice.sequence)

    def _tell(self, generation: Generation, events: list[Event]) -> None:
        self._tell_all({generation: events})

    @staticmethod
    def _tell_all(told: dict[Generation, list[Event]]) -> None:
        """One wake-up a loop, not one a token."""
        for loop in {generation.loop for generation in told}:
            mine = [(generation, events) for generation, events in told.items() if generation.loop is loop]
            try:
                loop.call_soon_threadsafe(_deliver, mine)
            except RuntimeError:
                _log.warning("events without a reader: the event loop is closed")

    def _measure(self) -> None:
        blocks = self._scheduler.block_manager
        model_id, metrics = self._model_id, self._metrics
        metrics.requests_running.labels(model_id).set(len(self._scheduler.running))
        metrics.requests_waiting.labels(model_id).set(len(self._scheduler.waiting))
        metrics.waiting_tokens.labels(model_id).set(self._scheduler.num_waiting_tokens)
        metrics.kv_cache_usage_ratio.labels(model_id).set(blocks.num_used_blocks / blocks.num_blocks)
        metrics.kv_cache_blocks.labels(model_id, "used").set(blocks.num_used_blocks)
        metrics.kv_cache_blocks.labels(model_id, "cached").set(blocks.num_cached_blocks)
        metrics.kv_cache_blocks.labels(model_id, "free").set(blocks.num_free_blocks)


def _deliver(told: list[tuple[Generation, list[Event]]]) -> None:
    for generation, events in told:
        generation.deliver(events)
