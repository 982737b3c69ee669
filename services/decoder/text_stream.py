"""The text of one choice: characters as they become whole, cut before the first stop string."""

from collections.abc import Sequence
from typing import Protocol


class Detokenizer(Protocol):
    """Text from tokens as they come; see `model.tokenizer.IncrementalDetokenizer`."""

    def append(self, token_ids: Sequence[int]) -> str: ...

    def finish(self) -> str: ...


class TextStream:
    """Holds back what may be the beginning of a stop string, so that no part of one leaks.

    `is_stopped` turns true when a stop string is complete; what follows it is dropped. `num_characters` counts those
    that came from the tokens, `num_told_characters` those that are out.
    """

    def __init__(self, detokenizer: Detokenizer, stop_strings: Sequence[str] = ()) -> None:
        assert all(stop_strings)
        self._detokenizer = detokenizer
        self._stop_strings = tuple(stop_strings)
        self._held = ""
        self.is_stopped = False
        self.num_characters = 0
        self.num_told_characters = 0

    def append(self, token_id: int, *, may_stop: bool = True) -> str:
        """The text that this token sets free. Without `may_stop`, stop strings pass (a minimum is not reached yet)."""
        return self._release(self._detokenizer.append([token_id]), may_stop=may_stop)

    def finish(self) -> str:
        """What was held back, at the end."""
        if self.is_stopped:
            return ""
        freed = self._release(self._detokenizer.finish(), may_stop=True)
        rest, self._held = self._held, ""
        if self.is_stopped:
            return freed
        self.num_told_characters += len(rest)
        return freed + rest

    def _release(self, piece: str, *, may_stop: bool) -> str:
        self.num_characters += len(piece)
        freed = self._freed(self._held + piece, may_stop=may_stop)
        self.num_told_characters += len(freed)
        return freed

    def _freed(self, text: str, *, may_stop: bool) -> str:
        if not may_stop:
            self._held = ""
            return text
        cuts = [at for stop in self._stop_strings if (at := text.find(stop)) >= 0]
        if cuts:
            self.is_stopped, self._held = True, ""
            return text[: min(cuts)]
        num_held = max((_overlap(text, stop) for stop in self._stop_strings), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


def _overlap(text: str, stop: str) -> int:
    """The longest end of the text that begins a stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
