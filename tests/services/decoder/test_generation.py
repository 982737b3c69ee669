"""A request that moves to another worker: what was told before and what is told after are the whole answer."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from services.decoder.events import Delta, Event
from services.decoder.generation import Generation
from services.decoder.sequence import FinishReason, Limits, Sequence
from services.decoder.text_stream import TextStream

PIECES = ["a", "b", "ab", "ba", "", "aab"]
STOP = len(PIECES)
HALF = STOP + 1


class Pieces:
    """A detokenizer of PIECES; HALF is half a character, which the next token completes."""

    def __init__(self) -> None:
        self._held = ""

    def append(self, token_ids: list[int]) -> str:
        text = ""
        for token_id in token_ids:
            if token_id == HALF:
                self._held += "é"
            else:
                text += self._held + ("<end>" if token_id == STOP else PIECES[token_id])
                self._held = ""
        return text

    def finish(self) -> str:
        return self._held


def generation(script: list[int], num_given: int, stops: list[str], min_tokens: int) -> Generation:
    limits = Limits(len(script), min(min_tokens, len(script)), frozenset({STOP}))
    return Generation(Sequence([0, *script[:num_given]], 1, limits), TextStream(Pieces(), stops))


def play(script: list[int], num_given: int, stops: list[str], min_tokens: int) -> tuple[list[Delta], FinishReason]:
    """What is told when the tokens after the given ones are drawn as scripted."""

    async def tell() -> tuple[list[Delta], FinishReason]:
        made = generation(script, num_given, stops, min_tokens)
        events: list[Event] = []
        reason = made.already_over()
        for token_id in script[num_given:] if reason is None else []:
            made.sequence.token_ids.append(token_id)
            told, reason = made.advance(now=1.0)
            events += told
            if reason is not None:
                break
        assert reason is not None
        return [event for event in events if isinstance(event, Delta)], reason

    return asyncio.run(tell())


@given(
    script=st.lists(st.integers(0, HALF), min_size=1, max_size=12),
    stops=st.lists(st.text("abé", min_size=1, max_size=3), max_size=2),
    min_tokens=st.integers(0, 6),
    cut=st.floats(0, 1),
)
def test_wherever_it_moves_the_answer_is_the_same(
    script: list[int], stops: list[str], min_tokens: int, cut: float
) -> None:
    whole, reason = play(script, 0, stops, min_tokens)
    num_given = int(cut * len(whole))
    rest, same_reason = play(script, num_given, stops, min_tokens)
    assert rest == whole[num_given:]
    assert same_reason is reason


@given(script=st.lists(st.integers(0, HALF), min_size=1, max_size=12), min_tokens=st.integers(0, 6))
def test_the_text_is_that_of_the_tokens(script: list[int], min_tokens: int) -> None:
    whole, reason = play(script, 0, [], min_tokens)
    token_ids = [token_id for delta in whole for token_id in delta.token_ids]
    assert token_ids == script[: len(token_ids)]
    stopped = reason is FinishReason.STOP
    assert stopped == (token_ids[-1] == STOP and len(token_ids) >= min(min_tokens, len(script)))
    detokenizer = Pieces()
    told = detokenizer.append(token_ids[:-1] if stopped else token_ids) + detokenizer.finish()
    assert "".join(delta.text for delta in whole) == told
