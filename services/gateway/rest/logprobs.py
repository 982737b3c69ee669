"""Log probabilities as OpenAI's objects: those of chats, and the older ones of completions."""

import codecs
from collections.abc import Sequence

from janus.v1 import streams_pb2
from services.gateway.rest.answers import ChatLogprobs, CompletionLogprobs, Logprob

Scores = Sequence[streams_pb2.TokenScores]


def chat_logprobs(scores: Scores) -> ChatLogprobs:
    return {
        "content": [{**_one(each.token), "top_logprobs": [_one(top) for top in each.top]} for each in scores],
        "refusal": None,
    }


def _one(told: streams_pb2.TokenLogprob) -> Logprob:
    return {"token": told.text, "logprob": told.logprob, "bytes": list(told.text_bytes) or None}


class CompletionScores:
    """The tokens of one text, which begins after `num_characters` others; it counts on from call to call."""

    def __init__(self, num_characters: int = 0) -> None:
        self._num_characters = num_characters
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def logprobs(self, scores: Scores) -> CompletionLogprobs:
        return {
            "tokens": [each.token.text for each in scores],
            "token_logprobs": [each.token.logprob for each in scores],
            "top_logprobs": [_by_text(each) for each in scores],
            "text_offset": [self._offset(each.token) for each in scores],
        }

    def _offset(self, told: streams_pb2.TokenLogprob) -> int:
        """Of the character that the token begins, or goes on with."""
        begin = self._num_characters
        self._num_characters += len(self._decoder.decode(told.text_bytes))
        return begin


def _by_text(scores: streams_pb2.TokenScores) -> dict[str, float]:
    """The likeliest and the token itself; of tokens that read alike the likelier."""
    found: dict[str, float] = {}
    for each in (*scores.top, scores.token):
        found.setdefault(each.text, each.logprob)
    return found
