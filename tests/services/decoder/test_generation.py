"""A request that moves to another worker: what was told before and what is told after are the whole answer."""

import asyncio
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from services.decoder.choice import Choice
from services.decoder.events import Delta, Event
from services.decoder.generation import Generation
from services.decoder.sequence import FinishReason, Limits, Sequence
from services.decoder.text_stream import TextStream

PIECES = ["a", "b", "ab", "ba", "", "aab"]
STOP = len(PIECES)
HALF = STOP + 1


@dataclass(frozen=True)
class Drawn:
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


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
    return Generation([Choice(Sequence([0, *script[:num_given]], 1, limits), TextStream(Pieces(), stops))])


def play(script: list[int], num_given: int, stops: list[str], min_tokens: int) -> tuple[list[Delta], FinishReason]:
    """What is told when the tokens after the given ones are drawn as scripted."""

    async def tell() -> tuple[list[Delta], FinishReason]:
        made = generation(script, num_given, stops, min_tokens)
        events: list[Event] = []
        (choice,) = made.choices
        for token_id in script[num_given:] if not made.has_ended else []:
            choice.sequence.token_ids.append(token_id)
            events += made.advance(choice, Drawn(token_id), now=1.0)
            if made.has_ended:
                break
        assert choice.finish_reason is not None
        return [event for event in events if isinstance(event, Delta)], choice.finish_reason

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


@given(
    script=st.lists(st.integers(0, HALF), min_size=1, max_size=12),
    stops=st.lists(st.text("abé", min_size=1, max_size=3), max_size=2),
)
def test_scores_come_with_the_text_that_they_are_of(script: list[int], stops: list[str]) -> None:
    """Each token's once and in order, none before its text; none at all of a token that a stop string hides."""

    async def tell() -> None:
        made = generation(script, 0, stops, 0)
        (choice,) = made.choices
        told, text, drawn = [], "", []
        for token_id in script:
            choice.sequence.token_ids.append(token_id)
            drawn.append(token_id)
            for event in made.advance(choice, Drawn(token_id, -float(len(drawn))), now=1.0):
                if isinstance(event, Delta):
                    text += event.text
                    told += event.scores
            assert [each.logprob for each in told] == [-float(n) for n in range(1, len(told) + 1)]
            # Each that is told begins inside of what is out, unless it has no text of its own.
            begins = len("".join(PIECES[t] for t in drawn[: len(told) - 1] if t < STOP)) if told else -1
            assert begins <= len(text) or made.has_ended
            if made.has_ended:
                break
        assert [each.token_id for each in told] == drawn[: len(told)]
        if not choice.text.is_stopped:
            assert len(told) == len(drawn) - (drawn[-1] == STOP and choice.finish_reason is FinishReason.STOP)
        else:
            shown = Pieces()
            before = shown.append(drawn[: len(told)]) + shown.finish()
            assert len(before) >= len(text)

    asyncio.run(tell())


def test_scores_of_a_stop_string_are_told_to_nobody() -> None:
    async def tell() -> list[int]:
        made = generation([1, 0, 1, 5, 1, 5], 0, ["baab"], 0)
        (choice,) = made.choices
        told: list[int] = []
        for token_id in (0, 1, 5, 1):
            choice.sequence.token_ids.append(token_id)
            for event in made.advance(choice, Drawn(token_id, -1.0), now=1.0):
                told += [each.token_id for each in event.scores] if isinstance(event, Delta) else []
        assert choice.text.is_stopped
        return told

    assert asyncio.run(tell()) == [0]
