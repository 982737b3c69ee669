"""Examples for training: filled frames, some beside another passage, some with a question that they can't answer."""

import random
import re
from collections.abc import Sequence

from model.training.questions.frame import Example, Frame, Passage
from model.training.questions.words import Words

_QUESTIONS_A_PASSAGE = 3
_NEIGHBOUR_RATIO = 0.2
_TWIN_RATIO = 0.15
_IMPOSSIBLE_RATIO = 0.12
_CARELESS_RATIO = 0.12
_NAME = re.compile(r"(?<=[a-z] )[A-Z]\w+")


def written_examples(frames: Sequence[Frame], num_passages: int, seed: int) -> list[Example]:
    """`num_passages` of each frame, a few questions each, in random order; the same for the same seed."""
    chance = random.Random(seed)
    examples = []
    for frame in frames:
        for _ in range(num_passages):
            passage = frame.fill(Words(chance), chance)
            kind = chance.random()
            if kind < _TWIN_RATIO:
                examples += _beside_twin(passage, frame.fill(Words(chance), chance), chance)
                continue
            other = chance.choice(frames).fill(Words(chance), chance)
            if kind < _TWIN_RATIO + _NEIGHBOUR_RATIO:
                examples += _beside(passage, _beginning(other.text, chance), chance)
            else:
                examples += _alone(passage, other, chance)
    chance.shuffle(examples)
    return examples


def _alone(passage: Passage, other: Passage, chance: random.Random) -> list[Example]:
    examples = [
        Example(passage.text, _asked(question, chance), answer, start)
        for question, answer, start in _chosen(passage, chance)
    ]
    if other.questions and chance.random() < _IMPOSSIBLE_RATIO * len(examples):
        question = chance.choice(other.questions[chance.choice(list(other.questions))])
        examples.append(Example(passage.text, _asked(question, chance), "", 0))
    return examples


def _beside(passage: Passage, neighbour: str, chance: random.Random) -> list[Example]:
    """The passage with other sentences before or after it."""
    is_first = chance.random() < 0.5
    context = f"{passage.text} {neighbour}" if is_first else f"{neighbour} {passage.text}"
    shift = 0 if is_first else len(neighbour) + 1
    return [
        Example(context, _asked(question, chance), answer, start + shift)
        for question, answer, start in _chosen(passage, chance)
    ]


def _beside_twin(passage: Passage, twin: Passage, chance: random.Random) -> list[Example]:
    """Two fillings of one frame: the question's name alone says which of them is meant."""
    named: dict[tuple[str, int], list[str]] = {}
    for place, ways in passage.questions.items():
        names = [way for way in ways if any(name not in twin.text for name in _NAME.findall(way))]
        if names and place[0] not in twin.text:
            named[place] = names
    return _beside(Passage(passage.text, named), twin.text, chance)


def _chosen(passage: Passage, chance: random.Random) -> list[tuple[str, str, int]]:
    """A few of the passage's questions, one a place, with answer and start."""
    places = chance.sample(list(passage.questions), min(_QUESTIONS_A_PASSAGE, len(passage.questions)))
    return [(chance.choice(passage.questions[place]), *place) for place in places]


def _beginning(text: str, chance: random.Random) -> str:
    """One or two sentences."""
    cut = ". ".join(text.split(". ")[: chance.randint(1, 2)])
    return cut if cut.endswith((".", "!", "?")) else cut + "."


def _asked(question: str, chance: random.Random) -> str:
    """As people type: now and then without the question mark or capitals."""
    if chance.random() < _CARELESS_RATIO:
        question = question.rstrip("?")
    if chance.random() < _CARELESS_RATIO:
        question = question.lower()
    return question
