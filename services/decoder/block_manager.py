"""Who owns which block of the cache: integers only.

Paging after Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (2023),
§4.2. A sequence gets every block that it can ever need when it is admitted, so that a running one never waits for
memory and no two can wait for each other.
"""

from collections import deque

from services.decoder.sequence import Sequence


class BlockManager:
    """`num_blocks` blocks of `block_size` tokens."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        assert num_blocks > 0
        assert block_size > 0
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free: deque[int] = deque(range(num_blocks))

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    @property
    def num_used_blocks(self) -> int:
        return self.num_blocks - len(self._free)

    def num_needed_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def can_ever_hold(self, num_tokens: int) -> bool:
        return self.num_needed_blocks(num_tokens) <= self.num_blocks

    def allocate(self, sequence: Sequence) -> bool:
        """Gives a sequence all its blocks, or none when they are not there. Mutates: `sequence.block_ids`."""
        assert not sequence.block_ids
        num_needed = self.num_needed_blocks(sequence.max_total_tokens)
        if num_needed > len(self._free):
            return False
        sequence.block_ids = [self._free.popleft() for _ in range(num_needed)]
        return True

    def free(self, sequence: Sequence) -> None:
        """Takes a sequence's blocks back; nothing where it has none. Mutates: `sequence.block_ids`."""
        self._free.extend(sequence.block_ids)
        sequence.block_ids = []

    def check(self) -> None:
        """When nothing runs, every block is free, once."""
        assert sorted(self._free) == list(range(self.num_blocks))
