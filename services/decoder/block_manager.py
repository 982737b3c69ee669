"""Who owns which block of the cache, and which blocks hold what somebody may want again: integers only.

Paging after Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (2023),
§4.2. A block that is full and computed has a key, the hash of its tokens chained to the key of the block before it, so
that equal keys mean equal tokens from the first one on:

    namespace ──► key of tokens 0..15 ──► key of tokens 16..31 ──► ...

    in use      held by one sequence, or by several that begin alike; nobody writes into a block that has a key
    cached      held by nobody, found again by its key, taken for something else when nothing emptier is left
    free        held by nobody, and nothing in it is of use

Taken first are the free ones, then the cached ones that nobody has asked for longest; of one sequence the last before
the first, since without the first ones nobody finds the others.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import sha256

from services.decoder.sequence import Sequence


class BlockManager:
    """`num_blocks` blocks of `block_size` tokens; without `is_caching`, every block that nobody holds is free."""

    def __init__(self, num_blocks: int, block_size: int, *, is_caching: bool = True) -> None:
        assert num_blocks > 0
        assert block_size > 0
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.is_caching = is_caching
        self._num_holders = [0] * num_blocks
        # Held by nobody, in the order in which they are taken.
        self._unheld: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._key_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._num_cached = 0

    @property
    def num_available_blocks(self) -> int:
        """What can be had, free or cached."""
        return len(self._unheld)

    @property
    def num_used_blocks(self) -> int:
        return self.num_blocks - len(self._unheld)

    @property
    def num_cached_blocks(self) -> int:
        return self._num_cached

    @property
    def num_free_blocks(self) -> int:
        return len(self._unheld) - self._num_cached

    def num_needed_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def can_ever_hold(self, num_tokens: int) -> bool:
        return self.num_needed_blocks(num_tokens) <= self.num_blocks

    def num_findable_tokens(self, sequence: Sequence) -> int:
        """How many of its tokens `find` would have computed, from the first one on."""
        return len(self._found(sequence, 0)) * self.block_size

    def num_missing_blocks(self, sequence: Sequence) -> int:
        """How many of the available blocks it takes to hold all tokens of a sequence that has none."""
        shared = sum(self._num_holders[block] > 0 for block in self._found(sequence, 0))
        return self.num_needed_blocks(sequence.num_tokens) - shared

    def find(self, sequence: Sequence) -> None:
        """Goes on through the cache as far as that reaches, where a sequence has come to the end of its blocks.

        Mutates: its blocks, and what of it is computed and cached.
        """
        begin = sequence.num_computed_tokens
        if begin != len(sequence.block_ids) * self.block_size:
            return
        for block in self._found(sequence, len(sequence.block_ids)):
            if self._num_holders[block] == 0:
                del self._unheld[block]
                self._num_cached -= 1
            self._num_holders[block] += 1
            sequence.block_ids.append(block)
        end = len(sequence.block_ids) * self.block_size
        sequence.num_computed_tokens = end
        sequence.num_cached_tokens += max(0, end - max(begin, sequence.max_computed_tokens))
        sequence.max_computed_tokens = max(end, sequence.max_computed_tokens)

    def allocate(self, sequence: Sequence, num_tokens: int | None = None) -> bool:
        """Gives a sequence blocks for its first tokens (None: for all it has), or none when they are not there.

        Mutates: `sequence.block_ids`, at their end.
        """
        num_tokens = sequence.num_tokens if num_tokens is None else num_tokens
        num_more = self.num_needed_blocks(num_tokens) - len(sequence.block_ids)
        if num_more > len(self._unheld):
            return False
        sequence.block_ids += [self._take() for _ in range(num_more)]
        return True

    def commit(self, sequence: Sequence, num_new_tokens: int) -> None:
        """Records that a sequence's next tokens are computed: blocks that they filled can be found from now on."""
        first = sequence.num_computed_tokens // self.block_size
        sequence.num_computed_tokens += num_new_tokens
        sequence.max_computed_tokens = max(sequence.num_computed_tokens, sequence.max_computed_tokens)
        if not self.is_caching:
            return
        for index in range(first, sequence.num_computed_tokens // self.block_size):
            key, block = self._key(sequence, index), sequence.block_ids[index]
            if key not in self._block_of:  # two who began alike at once have computed the same twice
                assert self._key_of[block] is None
                self._key_of[block] = key
                self._block_of[key] = block

    def free(self, sequence: Sequence) -> None:
        """Takes a sequence's blocks back; nothing where it has none.

        Mutates: its blocks, and what of it is computed.
        """
        for block in reversed(sequence.block_ids):
            self._num_holders[block] -= 1
            if self._num_holders[block] == 0:
                self._unheld[block] = None
                if self._key_of[block] is None:
                    self._unheld.move_to_end(block, last=False)
                else:
                    self._num_cached += 1
        sequence.block_ids = []
        sequence.num_computed_tokens = 0

    def check(self, sequences: Iterable[Sequence] = ()) -> None:
        """Every block is held by these sequences as often as they say, or by nobody, and found by its key alone."""
        held = [0] * self.num_blocks
        for sequence in sequences:
            for block in sequence.block_ids:
                held[block] += 1
        assert held == self._num_holders
        assert sorted(self._unheld) == [block for block, count in enumerate(held) if count == 0]
        assert self._block_of == {key: block for block, key in enumerate(self._key_of) if key is not None}
        assert self._num_cached == sum(self._key_of[block] is not None for block in self._unheld)

    def _found(self, sequence: Sequence, first: int) -> list[int]:
        """The cached blocks of its tokens from block `first` on, but for that of the last token."""
        found: list[int] = []
        if self.is_caching:
            for index in range(first, (sequence.num_tokens - 1) // self.block_size):
                block = self._block_of.get(self._key(sequence, index))
                if block is None:
                    break
                found.append(block)
        return found

    def _take(self) -> int:
        block, _ = self._unheld.popitem(last=False)
        key = self._key_of[block]
        if key is not None:
            del self._block_of[key]
            self._key_of[block] = None
            self._num_cached -= 1
        self._num_holders[block] = 1
        return block

    def _key(self, sequence: Sequence, index: int) -> bytes:
        """Of a sequence's full block. Tokens are only ever appended, so a key once made holds."""
        keys = sequence.block_keys
        while len(keys) <= index:
            begin = len(keys) * self.block_size
            before = keys[-1] if keys else sha256(sequence.cache_namespace.encode()).digest()
            tokens = array("q", sequence.token_ids[begin : begin + self.block_size])
            assert len(tokens) == self.block_size
            keys.append(sha256(before + tokens.tobytes()).digest())
        return keys[index]
