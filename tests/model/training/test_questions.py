"""The generators of questions: the same for the same seed, and every answer stands where they say."""

import random
from collections import Counter
from pathlib import Path

import pytest

from model.training import questions
from model.training.questions.examples import written_examples
from model.training.questions.frame import Frame, read_frames
from model.training.questions.words import Words

FRAMES = read_frames(Path(questions.__file__).with_name("frames"))
BAKERY = """{A @woman} opened a {S bakery|mill} in {C @city} because {R rents were low|her aunt lived there}.
It has {N @small} rooms.
R: Why did {A.first} choose {C}?
N: How many rooms does it have?
S: What did {A} open?
C: Where is it?"""


def fill(text: str, seed: int) -> tuple[str, dict[str, str]]:
    """The passage, and the answer to each question."""
    chance = random.Random(seed)
    passage = Frame.parse(text).fill(Words(chance), chance)
    return passage.text, {ways[0]: answer for (answer, _), ways in passage.questions.items()}


def test_a_frame_becomes_a_passage_with_questions() -> None:
    text, answers = fill(BAKERY, 1)
    name = text.split()[0]
    city = answers["Where is it?"]
    assert answers[f"Why did {name} choose {city}?"] in ("rents were low", "her aunt lived there")
    assert f"in {city} because" in text
    assert all(answer in text for answer in answers.values())


def test_a_sentence_that_is_left_out_takes_its_questions_with_it() -> None:
    told = [fill(BAKERY, seed) for seed in range(100)]
    for text, answers in told:
        assert ("How many rooms does it have?" in answers) == ("rooms" in text)
    assert 0 < sum("rooms" not in text for text, _ in told) < 50


def test_an_answer_goes_without_its_preposition() -> None:
    _, answers = fill("It was {P in the garden|in a shed}.\nP: Where was it?", 1)
    assert answers["Where was it?"] in ("the garden", "a shed")
    _, answers = fill("It was {P behind the garden|under a shed}.\nP: Where was it?", 1)
    assert answers["Where was it?"] in ("behind the garden", "under a shed")


def test_a_question_about_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no gap"):
        Frame.parse("It rained.\nA: Who came?")


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: frame.sentences[0][:40])
def test_every_frame_is_understood(frame: Frame) -> None:
    """Each of its questions is asked of one filling or another, and none of its markup is left."""
    chance = random.Random(3)
    passages = [frame.fill(Words(chance), chance) for _ in range(40)]
    for passage in passages:
        for (answer, start), ways in passage.questions.items():
            assert passage.text[start : start + len(answer)] == answer
            assert answer
            assert not set("[]{}|") & set(passage.text + "".join(ways))
    assert max(len(passage.questions) for passage in passages) >= len({gap for gap, _ in frame.questions})


def test_examples_are_the_same_for_a_seed() -> None:
    once, again, other = (written_examples(FRAMES, 2, seed) for seed in (1, 1, 2))
    assert once == again
    assert once != other


def test_answers_stand_at_their_start() -> None:
    examples = written_examples(FRAMES, 4, 5)
    assert all(x.context[x.start : x.start + len(x.answer)] == x.answer for x in examples)
    assert 0.01 < sum(not x.answer for x in examples) / len(examples) < 0.1


def test_questions_are_of_many_kinds() -> None:
    examples = written_examples(FRAMES, 4, 5)
    words = Counter(" ".join(x.question.lower().split()[:2]) for x in examples)
    assert len(words) > 100
    for word in ("who", "what", "when", "where", "why", "which", "how many", "how long", "how much"):
        assert sum(x.question.lower().startswith(word) for x in examples) > 30, word
