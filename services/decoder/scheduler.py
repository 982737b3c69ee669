"""What runs in the next step: sequences catch up with their tokens inside a token budget.

Running sequences first: those that need one token, then those that bring a piece of a prompt; then waiting ones. A
prompt is cut wherever the budget ends, so a long one never stalls a stream. Who comes first is told by a clock of work,
which counts the tokens that were ever computed:

    turn of a sequence     the clock when it came + its priority in tokens, then the order of arrival
    goes first             the sequence with the smallest turn; where memory ends, the one with the largest makes room

So a request of a better priority overtakes, but only those that came within so much work before it: nobody waits for
ever. Who makes room gives up all its blocks and waits again with its turn; then it finds in the cache what is left of
them, computes the rest anew, and goes on as if nothing had been.
"""

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from services.common.errors import QueueFull
from services.decoder.block_manager import BlockManager
from services.decoder.sequence import Sequence

# What one step of priority is worth, in full batches of work.
_PRIORITY_BATCHES = 16


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
    """What runs in one step, and who had to make room for it."""

    rows: tuple[BatchRow, ...]
    preempted: tuple[Sequence, ...] = ()

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
        # Both by turn.
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.max_batch_tokens = max_batch_tokens
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._arrivals = count()
        self._clock = 0
        # How much of what they might have written the last sequences wrote, and how many have told.
        self._written_ratio = 1.0
        self._num_written = 0

    @property
    def num_waiting_tokens(self) -> int:
        return sum(sequence.num_uncomputed_tokens for sequence in self.waiting)

    @property
    def num_waiting_work(self) -> int:
        """The tokens that waiting sequences have and those that they will probably write."""
        most = sum(sequence.max_total_tokens - sequence.num_tokens for sequence in self.waiting)
        return self.num_waiting_tokens + round(most * self._written_ratio)

    @property
    def num_streams(self) -> int:
        """Sequences that a step brings one token further: whom a long step would stall."""
        return sum(sequence.num_uncomputed_tokens == 1 for sequence in self.running)

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.waiting

    def add(self, sequence: Sequence) -> None:
        """Lines a sequence up. It fits into the whole cache: the caller has asked `can_ever_hold`.

        Raises: QueueFull, in requests or in tokens; a first one is never refused for its tokens.
        """
        assert self.block_manager.can_ever_hold(sequence.max_total_tokens)
        if len(self.waiting) >= self._max_waiting:
            raise QueueFull(f"{len(self.waiting)} requests are waiting, the most that may.")
        if self.waiting and self.num_waiting_tokens + sequence.num_uncomputed_tokens > self._max_waiting_tokens:
            raise QueueFull(f"Requests with {self.num_waiting_tokens} tokens are waiting, the most that may.")
        head_start = sequence.priority * _PRIORITY_BATCHES * self.max_batch_tokens
        sequence.turn = (self._clock + head_start, next(self._arrivals))
        insort(self.waiting, sequence, key=_turn)

    def add_beside(self, sequence: Sequence, other: Sequence) -> None:
        """Lines up a further sequence of a request that is in, right behind the other; that one was let in for all."""
        assert self.block_manager.can_ever_hold(sequence.max_total_tokens)
        sequence.turn = (other.turn[0], next(self._arrivals))
        insort(self.waiting, sequence, key=_turn)

    def drop_late(self, now: float, at_least: Callable[[int], float]) -> list[Sequence]:
        """Takes out waiting sequences that can't have a token before their deadline, even if they ran at once.

        `at_least` says what a step of so many tokens costs on the best of days, in seconds.
        """
        late = [sequence for sequence in self.waiting if self._is_late(sequence, now, at_least)]
        for sequence in late:
            self.waiting.remove(sequence)
        return late

    def schedule(self, num_tokens: int | None = None) -> Batch:
        """The next step, of so many tokens (None: of as many as may be); empty when nothing can run.

        Each stream gets its token and prompts get a block's worth at least, whatever the number says.
        Mutates: admits waiting sequences, gives blocks to those that run, takes all from those that make room.
        """
        if num_tokens is None:
            num_tokens = self.max_batch_tokens
        budget = min(self.max_batch_tokens, max(num_tokens, self.num_streams + self.block_manager.block_size))
        pieces: dict[Sequence, int] = {}
        # A stable sort: among equals, by turn.
        for sequence in sorted(self.running, key=lambda s: s.num_uncomputed_tokens > 1):
            if budget == 0:
                break
            self.block_manager.find(sequence)
            pieces[sequence] = self._piece(sequence, budget)
            budget -= pieces[sequence]
        rows, preempted = self._make_room(pieces)
        while budget > 0 and self.waiting and len(self.running) < self._max_running and self._has_room():
            sequence = self.waiting.pop(0)
            insort(self.running, sequence, key=_turn)
            self.block_manager.find(sequence)
            rows.append(BatchRow(sequence, self._piece(sequence, budget)))
            budget -= rows[-1].num_new_tokens
            is_given = self.block_manager.allocate(sequence, sequence.num_computed_tokens + rows[-1].num_new_tokens)
            assert is_given
        return Batch(tuple(rows), tuple(preempted))

    def commit(self, batch: Batch, drawn: list[int | None]) -> None:
        """Records a step: its tokens are computed, and rows that caught up got the token that was drawn for them."""
        for row, token in zip(batch.rows, drawn, strict=True):
            assert (token is not None) == row.is_caught_up
            self.block_manager.commit(row.sequence, row.num_new_tokens)
            if token is not None:
                row.sequence.token_ids.append(token)
        self._clock += batch.num_tokens

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, finished or not; its blocks are free for the next step."""
        if sequence in self.running:
            self.running.remove(sequence)
            written = sequence.num_output_tokens / sequence.limits.max_tokens
            self._num_written += 1
            self._written_ratio += (written - self._written_ratio) / min(self._num_written, 16)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.block_manager.free(sequence)

    def _is_late(self, sequence: Sequence, now: float, at_least: Callable[[int], float]) -> bool:
        if sequence.limits.deadline is None:
            return False
        seconds = sequence.limits.deadline - now
        num_tokens = sequence.num_uncomputed_tokens
        if seconds <= 0 or self._seconds(num_tokens, at_least) <= seconds:
            return seconds <= 0
        # Only now is the cache asked: it is more work.
        return self._seconds(num_tokens - self.block_manager.num_findable_tokens(sequence), at_least) > seconds

    def _seconds(self, num_tokens: int, at_least: Callable[[int], float]) -> float:
        num_full_steps, rest = divmod(num_tokens, self.max_batch_tokens)
        return num_full_steps * at_least(self.max_batch_tokens) + at_least(rest)

    def _piece(self, sequence: Sequence, budget: int) -> int:
        """How many of its tokens run: all, or what the budget has, if it costs little up to the end of a block, from
        where on what others compute can be found."""
        if sequence.num_uncomputed_tokens <= budget:
            return sequence.num_uncomputed_tokens
        whole = budget - (sequence.num_computed_tokens + budget) % self.block_manager.block_size
        return whole if 4 * whole >= 3 * budget else budget

    def _make_room(self, pieces: dict[Sequence, int]) -> tuple[list[BatchRow], list[Sequence]]:
        """Blocks for what runs, by turn; from its end, who has to, waits again."""
        rows: list[BatchRow] = []
        preempted: list[Sequence] = []
        for sequence in list(self.running):
            num_tokens = pieces.get(sequence, 0)
            if num_tokens == 0 or sequence in preempted:
                continue
            while not self.block_manager.allocate(sequence, sequence.num_computed_tokens + num_tokens):
                preempted.append(self.running.pop())
                self.block_manager.free(preempted[-1])
                insort(self.waiting, preempted[-1], key=_turn)
                if preempted[-1] is sequence:
                    break
            else:
                rows.append(BatchRow(sequence, num_tokens))
        return rows, preempted

    def _has_room(self) -> bool:
        """For all tokens of the first that waits, beside those of who runs and a block for each of them to grow."""
        blocks = self.block_manager
        spoken_for = sum(blocks.num_needed_blocks(s.num_tokens) - len(s.block_ids) + 1 for s in self.running)
        room = blocks.num_available_blocks - (spoken_for if self.running else 0)
        return blocks.num_missing_blocks(self.waiting[0]) <= room


def _turn(sequence: Sequence) -> tuple[int, int]:
    return sequence.turn
