"""Who owns which block, and what can be found again: equal tokens from the first one on, in one namespace."""

from collections.abc import Sequence as Items

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.decoder.block_manager import BlockManager
from services.decoder.sequence import Limits, Sequence

SIZE = 4


def sequence(token_ids: Items[int], namespace: str = "") -> Sequence:
    return Sequence(list(token_ids), len(token_ids), Limits(8), cache_namespace=namespace)


def compute(blocks: BlockManager, one: Sequence, num_tokens: int | None = None) -> int:
    """Finds what is there and computes the rest, as far as said; how much was found."""
    blocks.find(one)
    found = one.num_computed_tokens
    assert blocks.allocate(one, num_tokens)
    blocks.commit(one, (one.num_tokens if num_tokens is None else num_tokens) - found)
    return found


def test_equal_beginnings_share_their_full_blocks() -> None:
    blocks = BlockManager(16, SIZE)
    first, second = sequence(range(11)), sequence([*range(9), 90, 91])
    assert compute(blocks, first) == 0
    assert compute(blocks, second) == 8
    assert second.block_ids[:2] == first.block_ids[:2]
    assert second.block_ids[2] != first.block_ids[2]
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 8)
    assert blocks.num_used_blocks == 4
    blocks.check([first, second])
    blocks.free(first)
    assert blocks.num_used_blocks == 3, "the second one holds the shared ones"
    blocks.free(second)
    assert (blocks.num_used_blocks, blocks.num_cached_blocks, blocks.num_free_blocks) == (0, 2, 14)
    blocks.check()


def test_the_last_token_is_always_computed() -> None:
    blocks = BlockManager(16, SIZE)
    compute(blocks, sequence(range(8)))
    assert compute(blocks, sequence(range(8))) == 4
    assert compute(blocks, sequence(range(9))) == 8


def test_nothing_is_found_before_it_is_computed() -> None:
    blocks = BlockManager(16, SIZE)
    first = sequence(range(20))
    assert blocks.allocate(first)
    assert blocks.num_findable_tokens(sequence(range(20))) == 0
    blocks.commit(first, 11)
    assert blocks.num_findable_tokens(sequence(range(20))) == 8


def test_a_block_is_keyed_by_all_that_comes_before_it() -> None:
    blocks = BlockManager(16, SIZE)
    compute(blocks, sequence([1, 1, 1, 1, 2, 2, 2, 2, 3]))
    assert blocks.num_findable_tokens(sequence([2, 2, 2, 2, 3])) == 0
    assert blocks.num_findable_tokens(sequence([1, 1, 1, 1, 2, 2, 2, 2, 4])) == 8


def test_a_namespace_finds_nothing_of_another() -> None:
    blocks = BlockManager(16, SIZE)
    compute(blocks, sequence(range(20), "a"))
    assert blocks.num_findable_tokens(sequence(range(20), "b")) == 0
    assert blocks.num_findable_tokens(sequence(range(20))) == 0
    assert blocks.num_findable_tokens(sequence(range(20), "a")) == 16


def test_without_caching_nothing_is_found() -> None:
    blocks = BlockManager(16, SIZE, is_caching=False)
    one = sequence(range(20))
    compute(blocks, one)
    assert compute(blocks, sequence(range(20))) == 0
    blocks.free(one)
    assert blocks.num_cached_blocks == 0


def test_free_blocks_go_first_then_the_end_of_what_was_asked_for_longest_ago() -> None:
    blocks = BlockManager(8, SIZE)
    old, young = sequence(range(12)), sequence(range(100, 112))
    for one in (old, young):
        compute(blocks, one)
        blocks.free(one)
    assert (blocks.num_cached_blocks, blocks.num_free_blocks) == (6, 2)
    other = sequence(range(200, 212))
    assert blocks.allocate(other)
    assert blocks.num_findable_tokens(sequence(range(13))) == 8, "its last block went first"
    assert blocks.num_findable_tokens(sequence(range(100, 113))) == 12
    blocks.free(other)
    # Asked for again, the old one is the young one.
    again = sequence(range(13))
    blocks.find(again)
    blocks.free(again)
    assert blocks.allocate(sequence(range(300, 320)))
    assert blocks.num_findable_tokens(sequence(range(13))) == 8
    assert blocks.num_findable_tokens(sequence(range(100, 113))) == 4


def test_what_was_taken_is_found_no_more() -> None:
    blocks = BlockManager(4, SIZE)
    one = sequence(range(16))
    compute(blocks, one)
    blocks.free(one)
    other = sequence(range(50, 62))
    compute(blocks, other)
    assert blocks.num_findable_tokens(sequence(range(16))) == 4
    blocks.check([other])


def test_who_does_not_fit_gets_nothing() -> None:
    blocks = BlockManager(4, SIZE)
    one, other = sequence(range(12)), sequence(range(50, 60))
    assert blocks.allocate(one)
    assert not blocks.allocate(other)
    assert other.block_ids == []
    assert blocks.num_available_blocks == 1
    assert blocks.num_missing_blocks(other) == 3


def test_a_sequence_that_comes_again_finds_its_own_and_was_never_given_it() -> None:
    """Blocks are lost to it by preemption; what it had computed itself does not count as cached."""
    blocks = BlockManager(16, SIZE)
    compute(blocks, sequence(range(8)), 8)
    one = sequence(range(20))
    assert compute(blocks, one, 14) == 8
    blocks.free(one)
    assert one.num_computed_tokens == 0
    assert compute(blocks, one) == 12
    assert one.num_cached_tokens == 8


def test_what_another_computes_meanwhile_is_found_at_the_next_block() -> None:
    blocks = BlockManager(16, SIZE)
    ahead, behind = sequence(range(20)), sequence(range(20))
    compute(blocks, ahead, 4)
    compute(blocks, behind, 8)
    blocks.allocate(ahead)
    blocks.commit(ahead, 16)
    blocks.find(behind)
    assert behind.num_computed_tokens == 16
    assert behind.block_ids[2:] == ahead.block_ids[2:4]
    assert behind.num_cached_tokens == 12
    blocks.check([ahead, behind])


def test_a_check_finds_what_is_lost_and_what_is_held_twice() -> None:
    blocks = BlockManager(4, SIZE)
    one = sequence(range(5))
    blocks.allocate(one)
    with pytest.raises(AssertionError):
        blocks.check()
    one.block_ids.append(one.block_ids[0])
    with pytest.raises(AssertionError):
        blocks.check([one])


@settings(max_examples=200, deadline=None)
@given(
    num_blocks=st.integers(1, 12),
    block_size=st.integers(1, 4),
    actions=st.lists(
        st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=12), st.integers(0, 11), st.sampled_from("ab")),
        max_size=40,
    ),
)
def test_a_block_is_found_where_its_very_tokens_were_computed(
    num_blocks: int, block_size: int, actions: list[tuple[list[int], int, str]]
) -> None:
    """Few tokens, so that many begin alike; each action brings a sequence, and may send an earlier one away."""
    blocks = BlockManager(num_blocks, block_size)
    contents: dict[int, tuple[str, tuple[int, ...]]] = {}  # of a block: all tokens up to its end
    alive: list[Sequence] = []
    for token_ids, leaving, namespace in actions:
        one = sequence(token_ids, namespace)
        blocks.find(one)
        assert one.num_computed_tokens < one.num_tokens
        if blocks.allocate(one):
            begin = one.num_computed_tokens
            for index, block in enumerate(one.block_ids):
                end = min((index + 1) * block_size, one.num_tokens)
                if end <= begin:
                    assert contents[block] == (namespace, tuple(token_ids[:end]))
                else:
                    assert not any(block in other.block_ids for other in alive), "nobody else's may be written"
                    contents[block] = (namespace, tuple(token_ids[:end]))
            blocks.commit(one, one.num_uncomputed_tokens)
            alive.append(one)
        else:
            blocks.free(one)
        if leaving < len(alive):
            blocks.free(alive.pop(leaving))
        blocks.check(alive)
    for one in alive:
        blocks.free(one)
    blocks.check()
