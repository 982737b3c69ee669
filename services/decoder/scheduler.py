"""What runs in the next step: sequences catch up with their tokens inside a token budget.

Running sequences first, those that need one token before those that bring a piece of a prompt, so that a long prompt
never stalls a stream; then waiting ones, first come, first served. A prompt is cut wherever the budget ends.
"""

from collections import deque
from dataclasses import dataclass

from services.common.errors import QueueFull
from services.decoder.block_manager import BlockManager
from services.decoder.sequence import Sequence


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A sequence and how many of its uncomputed tokens run in this step."""

    sequence: Sequence
    num_new_tokens: int

    @property
    def is_caught_up(self) -> bool:
        """Whether the step reaches the last token, so that a new one is drawn."""
        return self.num_new_tokens == self.sequence.num_uncomputed_tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """What runs in one step."""

    rows: tuple[BatchRow, ...]

    @classmethod
    def of(cls, sequence: Sequence, num_new_tokens: int) -> "Batch":
        """A batch of one."""
        return cls((BatchRow(sequence, num_new_tokens),))

    @property
    def num_tokens(self) -> int:
        return sum(row.num_new_tokens for row in self.rows)


class Scheduler:
    """Bounds: tokens a step, running sequences, waiting requests and their tokens."""

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_batch_tokens: int,
        max_running: int,
        max_waiting: int,
        max_waiting_tokens: int,
    ) -> None:
        assert max_batch_tokens > 0
        self.block_manager = block_manager
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self._max_batch_tokens = max_batch_tokens
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens

    @property
    def num_waiting_tokens(self) -> int:
        return sum(sequence.num_uncomputed_tokens for sequence in self.waiting)

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.waiting

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence at the queue's end. It fits into the whole cache: the caller has asked `can_ever_hold`.

        Raises: QueueFull, in requests or in tokens; a first one is never refused for its tokens.
        """
        assert self.block_manager.can_ever_hold(sequence.max_total_tokens)
        if len(self.waiting) >= self._max_waiting:
            raise QueueFull(f"{len(self.waiting)} requests are waiting, the most that may.")
        if self.waiting and self.num_waiting_tokens + sequence.num_uncomputed_tokens > self._max_waiting_tokens:
            raise QueueFull(f"Requests with {self.num_waiting_tokens} tokens are waiting, the most that may.")
        self.waiting.append(sequence)

    def drop_expired(self, now: float) -> list[Sequence]:
        """Takes out waiting sequences whose deadline has passed, before they cost a step."""
        expired = [s for s in self.waiting if s.limits.deadline is not None and s.limits.deadline <= now]
        for sequence in expired:
            self.waiting.remove(sequence)
        return expired

    def schedule(self) -> Batch:
        """The next step; empty when nothing can run. Mutates: admits waiting sequences, with their blocks."""
        budget = self._max_batch_tokens
        rows: list[BatchRow] = []
        # A stable sort: among equals, who came first.
        for sequence in sorted(self.running, key=lambda s: s.num_uncomputed_tokens > 1):
            if budget == 0:
                break
            rows.append(BatchRow(sequence, min(sequence.num_uncomputed_tokens, budget)))
            budget -= rows[-1].num_new_tokens
        while budget > 0 and self.waiting and len(self.running) < self._max_running:
            if not self.block_manager.allocate(self.waiting[0]):
                break
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            rows.append(BatchRow(sequence, min(sequence.num_uncomputed_tokens, budget)))
            budget -= rows[-1].num_new_tokens
        return Batch(tuple(rows))

    def commit(self, batch: Batch, drawn: list[int | None]) -> None:
        """Records a step: its tokens are computed, and rows that caught up got the token that was drawn for them."""
        for row, token in zip(batch.rows, drawn, strict=True):
            assert (token is not None) == row.is_caught_up
            row.sequence.num_computed_tokens += row.num_new_tokens
            if token is not None:
                row.sequence.token_ids.append(token)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, finished or not; its blocks are free for the next step."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.block_manager.free(sequence)
