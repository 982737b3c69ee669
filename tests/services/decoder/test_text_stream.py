"""Stop strings across token borders: nothing of one leaks, nothing else is lost."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.decoder.text_stream import TextStream

LETTERS = st.text(alphabet="ab", max_size=4)


class Letters:
    """A detokenizer whose tokens are indices into a list of pieces."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = pieces

    def append(self, token_ids: Sequence[int]) -> str:
        return "".join(self._pieces[token_id] for token_id in token_ids)

    def finish(self) -> str:
        return ""


@given(pieces=st.lists(LETTERS, max_size=12), stops=st.lists(LETTERS.filter(bool), max_size=3))
def test_the_text_ends_before_the_stop_string_that_is_whole_first(pieces: list[str], stops: list[str]) -> None:
    stream = TextStream(Letters(pieces), stops)
    told = ""
    so_far = ""
    expected = None
    for token_id, piece in enumerate(pieces):
        so_far += piece
        told += stream.append(token_id)
        cuts = [so_far.index(stop) for stop in stops if stop in so_far]
        if cuts:
            expected = so_far[: min(cuts)]
            break
        assert so_far.startswith(told)
    told += stream.finish()
    assert stream.is_stopped == (expected is not None)
    assert told == (so_far if expected is None else expected)


def test_what_could_begin_a_stop_string_is_held_back() -> None:
    stream = TextStream(Letters(["Hello\n", "Us", "ually", "\nUser:", " x"]), ["\nUser:"])
    assert stream.append(0) == "Hello"
    assert stream.append(1) == ""
    assert stream.append(2) == "\nUsually"
    assert stream.append(3) == ""
    assert stream.is_stopped
    assert stream.finish() == ""


def test_a_minimum_lets_stop_strings_pass() -> None:
    stream = TextStream(Letters(["stop", "stop"]), ["stop"])
    assert stream.append(0, may_stop=False) == "stop"
    assert not stream.is_stopped
    assert stream.append(1) == ""
    assert stream.is_stopped


def test_what_was_held_comes_at_the_end() -> None:
    stream = TextStream(Letters(["tail ST"]), ["STOP"])
    assert stream.append(0) == "tail "
    assert stream.finish() == "ST"


def test_an_empty_stop_string_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        TextStream(Letters([]), [""])
