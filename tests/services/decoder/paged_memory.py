"""A runner without a model: its cache holds tokens instead of keys and values, so that reading can be checked."""

from collections.abc import Callable
from dataclasses import dataclass

from services.decoder.scheduler import Batch
from services.decoder.sequence import Sequence


@dataclass(frozen=True)
class Slot:
    """What attention would have read: the token, where it stands, and on whose account."""

    token_id: int
    position: int
    namespace: str


class PagedMemory:
    """Writes a step's tokens into their slots, then reads every row's whole context back as its own tokens."""

    def __init__(self, block_size: int, draw: Callable[[Sequence], int]) -> None:
        self.block_size = block_size
        self.draw = draw
        self.slots: dict[tuple[int, int], Slot] = {}
        self.num_computed_tokens = 0

    def execute(self, batch: Batch) -> list[int | None]:
        written: set[tuple[int, int]] = set()
        owners: dict[int, Sequence] = {}
        for row in batch.rows:
            begin = row.sequence.num_computed_tokens
            assert begin < row.sequence.num_tokens, "the last token is computed"
            for position in range(begin, begin + row.num_new_tokens):
                place = self._place(row.sequence, position)
                assert place not in written
                assert owners.setdefault(place[0], row.sequence) is row.sequence, "two write into one block"
                written.add(place)
                self.slots[place] = self._slot(row.sequence, position)
        for row in batch.rows:
            for position in range(row.sequence.num_computed_tokens + row.num_new_tokens):
                assert self.slots[self._place(row.sequence, position)] == self._slot(row.sequence, position)
            self.num_computed_tokens += row.num_new_tokens
        return [self.draw(row.sequence) if row.is_caught_up else None for row in batch.rows]

    def block(self, block_id: int) -> list[Slot]:
        return [self.slots[block_id, offset] for offset in range(self.block_size)]

    def _place(self, sequence: Sequence, position: int) -> tuple[int, int]:
        return sequence.block_ids[position // self.block_size], position % self.block_size

    @staticmethod
    def _slot(sequence: Sequence, position: int) -> Slot:
        return Slot(sequence.token_ids[position], position, sequence.cache_namespace)
