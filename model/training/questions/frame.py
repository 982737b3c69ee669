"""A frame: a passage with gaps, and for each gap the ways to ask for what fills it.

    {A @woman} [opened|started] a bakery in {C @city} {W because|since} {R rents were low there|her aunt lived there}.
    The first loaf was sold in {Y @year}.
    R: Why did {A.first} choose {C}? / What made her open it in {C}?

`{A @woman}` is a gap that a list of `words` fills, `{R x|y}` one with a choice of its own, `{A}` the same text again,
`{A.first}` its first word; `[x|y]` is a choice of wording. A sentence but the first may be left out, and with it all
that refers to it. Frames are separated by empty lines; lines with # are comments.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.training.questions.words import Words

_QUESTIONS = re.compile(r"^([A-Z][a-z0-9]?): (.+)$")
_CHOICE = re.compile(r"\[((?:[^\[\]{}]|\{[^{}|]*\})*)\]")
_GAP = re.compile(r"\{([A-Z][a-z0-9]?)(?:\.(\w+))?(?: ([^{}]+))?\}")
# What an answer goes without: "in 1998" is answered by 1998, but "behind the church" by all of it.
_PREPOSITION = re.compile(r"(?:in|at|on|for|from) ")
_MARKUP = re.compile(r"[\[\]{}|]")
_OPENINGS = "[{ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LEFT_OUT_RATIO = 0.1


@dataclass(frozen=True, slots=True)
class Example:
    """A question about a passage; the answer stands at `start`, and is empty where the passage holds none."""

    context: str
    question: str
    answer: str
    start: int


@dataclass(frozen=True, slots=True)
class Passage:
    """A filled frame: its text, and every way to ask for each `(answer, start)`."""

    text: str
    questions: dict[tuple[str, int], list[str]]


@dataclass(frozen=True, slots=True)
class Frame:
    sentences: tuple[str, ...]
    questions: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def parse(cls, text: str) -> "Frame":
        """Raises: ValueError for a question about a gap that the passage has not."""
        sentences, questions = [], []
        for line in text.splitlines():
            if match := _QUESTIONS.match(line):
                questions.append((match[1], tuple(match[2].split(" / "))))
            else:
                sentences += _sentences(line)
        defined = {match[1] for match in _GAP.finditer(" ".join(sentences)) if match[3]}
        used = {match[1] for _, ways in questions for way in ways for match in _GAP.finditer(way)}
        if unknown := (used | {gap for gap, _ in questions}) - defined:
            raise ValueError(f"no gap {sorted(unknown)} in {sentences[:1]}")
        return cls(tuple(sentences), tuple(questions))

    def fill(self, words: Words, chance: random.Random) -> Passage:
        texts: dict[str, str] = {}
        starts: dict[str, int] = {}
        passage = ""
        for sentence in self.sentences:
            if passage and chance.random() < _LEFT_OUT_RATIO:
                continue
            written = self._written(sentence, texts, starts, len(passage) + bool(passage), words, chance)
            if written is not None:
                passage = f"{passage} {written}" if passage else written
        questions: dict[tuple[str, int], list[str]] = {}
        for gap, ways in self.questions:
            if gap in starts:
                written_ways = [self._written(way, texts, {}, 0, words, chance) for way in ways]
                start, end = starts[gap], starts[gap] + len(texts[gap])
                start += len(_preposition(texts[gap]))
                answer = passage[start:end]
                questions[answer, start] = [way for way in written_ways if way is not None]
        return Passage(passage, {place: ways for place, ways in questions.items() if ways})

    def _written(
        self,
        template: str,
        texts: dict[str, str],
        starts: dict[str, int],
        offset: int,
        words: Words,
        chance: random.Random,
    ) -> str | None:
        """The template's text, or nothing where it refers to a sentence that was left out.

        Mutates: `texts` and `starts`, which learn what fills each new gap and where it stands.
        """
        template = _CHOICE.sub(lambda match: chance.choice(match[1].split("|")), template).replace("  ", " ").strip()
        if any(not match[3] and match[1] not in texts for match in _GAP.finditer(template)):
            defined = {match[1] for match in _GAP.finditer(template) if match[3]}
            if any(not match[3] and match[1] not in texts.keys() | defined for match in _GAP.finditer(template)):
                return None
        written, end = "", 0
        for match in _GAP.finditer(template):
            written += template[end : match.start()]
            end = match.end()
            gap, part, choices = match.groups()
            if choices:
                filled = words.draw(choices[1:], chance) if choices[0] == "@" else chance.choice(choices.split("|"))
                if filled[0] in "aeiou" and re.search(r"\b[Aa] $", written):
                    written = f"{written[:-1]}n "
                texts[gap] = filled
                starts[gap] = offset + len(written)
            written += _capital(_part(texts[gap], part), after=written)
        written += template[end:]
        assert not _MARKUP.search(written), f"not understood: {written}"
        return _capital(written, after="")


def _preposition(text: str) -> str:
    match = _PREPOSITION.match(text)
    return match[0] if match else ""


def _sentences(line: str) -> list[str]:
    """Cut where a sentence ends outside of all gaps and choices."""
    sentences, start, depth = [], 0, 0
    for place, character in enumerate(line):
        depth += (character in "[{") - (character in "]}")
        is_end = character in ".!?" and line[place + 1 : place + 2] == " " and line[place + 2] in _OPENINGS
        if depth == 0 and is_end:
            sentences.append(line[start : place + 1])
            start = place + 2
    return [*sentences, line[start:]]


def _capital(text: str, *, after: str) -> str:
    """A sentence begins with a capital."""
    return text if after and after.rstrip()[-1:] not in ".!?:" else text[0].upper() + text[1:]


def _part(text: str, part: str | None) -> str:
    match part:
        case "first":
            return text.split()[0]
        case "last":
            return text.split()[-1]
        case "bare":
            return re.sub(r"^(a|an|the|his|her|their) ", "", text, flags=re.IGNORECASE)
        case _:
            return text


def read_frames(folder: Path) -> Sequence[Frame]:
    """Every frame of every file, in the order of the files' names."""
    frames = []
    for path in sorted(folder.glob("*.txt")):
        lines = [line.rstrip() for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
        frames += [Frame.parse(block.strip()) for block in re.split(r"\n{2,}", "\n".join(lines)) if block.strip()]
    return frames
