"""One answer of a request: a sequence, and the text that its tokens become."""

from typing import Protocol

from services.decoder.events import Delta, Event, Finished, ScoredToken
from services.decoder.sequence import FinishReason, Sequence
from services.decoder.text_stream import TextStream


class Draw(Protocol):
    """A token, and where they were asked for its log probability and the likeliest with theirs."""

    @property
    def token(self) -> int: ...

    @property
    def logprob(self) -> float | None: ...

    @property
    def top(self) -> tuple[tuple[int, float], ...]: ...


class Choice:
    """Times are monotonic, in seconds; 0 where it has not come to that."""

    def __init__(self, sequence: Sequence, text: TextStream, index: int = 0) -> None:
        self.sequence = sequence
        self.text = text
        self.index = index
        self.first_token_at = 0.0
        self.last_token_at = 0.0
        self.finish_reason: FinishReason | None = None
        # Scores of tokens none of whose text is out, each with the place where its text begins.
        self._held: list[tuple[int, ScoredToken]] = []
        # Tokens that another worker made and told: their text is out, but stop strings and characters go on from it.
        for count, token_id in enumerate(sequence.token_ids[sequence.num_prompt_tokens :], start=1):
            self.text.append(token_id, may_stop=count >= sequence.limits.min_tokens)
        self.finish_reason = FinishReason.STOP if self.text.is_stopped else sequence.finish_reason()

    @property
    def seconds_per_token(self) -> float | None:
        """Between two tokens, where there are two."""
        num_gaps = self.sequence.num_output_tokens - 1
        return (self.last_token_at - self.first_token_at) / num_gaps if num_gaps > 0 else None

    def advance(self, draw: Draw, now: float) -> list[Event]:
        """The events of the token that was just drawn, which stands at the sequence's end."""
        self.first_token_at = self.first_token_at or now
        self.last_token_at = now
        sequence, text = self.sequence, self.text
        reason = sequence.finish_reason()
        if reason is FinishReason.STOP:
            piece = ""  # the token that stops is no text
        else:
            self._hold(draw)
            piece = text.append(draw.token, may_stop=sequence.num_output_tokens >= sequence.limits.min_tokens)
            reason = FinishReason.STOP if text.is_stopped else reason
        if reason is not None:
            piece += text.finish()
            reason = FinishReason.STOP if text.is_stopped else reason
        self.finish_reason = reason
        delta = Delta((draw.token,), piece, self.index, self._freed())
        return [delta] if reason is None else [delta, self.finished()]

    def finished(self) -> Finished:
        assert self.finish_reason is not None
        return Finished(self.finish_reason, self.index)

    def _hold(self, draw: Draw) -> None:
        if draw.logprob is not None:
            self._held.append((self.text.num_characters, ScoredToken(draw.token, draw.logprob, draw.top)))

    def _freed(self) -> tuple[ScoredToken, ...]:
        """Scores of tokens whose text has begun to come out; at an end that no stop string makes, of all."""
        is_whole = self.finish_reason is not None and not self.text.is_stopped
        count = sum(is_whole or begin < self.text.num_told_characters for begin, _ in self._held)
        freed, self._held = self._held[:count], self._held[count:]
        return tuple(scored for _, scored in freed)
