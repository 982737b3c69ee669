"""How tokens with their log probabilities are told: each by its id, its own text and its bytes."""

from typing import Protocol

from janus.v1 import streams_pb2
from services.decoder.events import ScoredToken


class Speller(Protocol):
    """What knows the tokens: `services.decoder.runner.Runner`."""

    def token_bytes(self, token_id: int) -> bytes | None: ...


class Spelling:
    def __init__(self, speller: Speller) -> None:
        self._speller = speller

    def scores(self, scored: ScoredToken) -> streams_pb2.TokenScores:
        return streams_pb2.TokenScores(
            token=self._token(scored.token_id, scored.logprob),
            top=[self._token(token_id, logprob) for token_id, logprob in scored.top],
        )

    def _token(self, token_id: int, logprob: float) -> streams_pb2.TokenLogprob:
        # A model may score more tokens than its tokenizer has.
        spelled = self._speller.token_bytes(token_id) or b""
        text = spelled.decode(errors="replace")
        return streams_pb2.TokenLogprob(token_id=token_id, text=text, logprob=logprob, text_bytes=spelled)
