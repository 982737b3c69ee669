"""Questions out of grammar: what is asked, in which words, and where the answer stands."""

import random

import pytest
from recorded_language import RecordedLanguage

from model.training.questions.clauses import asked

LANGUAGE = RecordedLanguage()
BRIDGE = "The old bridge was built in 1890 by three monks."
ANNA = "Anna Miller bought a red bicycle for her son."
PETER = "Peter moved to Berlin because the rents were low."


def questions(text: str, seed: int) -> dict[str, str]:
    return {one.question: text[one.start : one.end] for one in asked(text, LANGUAGE, random.Random(seed))}


def in_all(text: str) -> dict[str, str]:
    """All questions that one seed or another asks, and their answers."""
    return {question: answer for seed in range(30) for question, answer in questions(text, seed).items()}


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        (BRIDGE, "When was the old bridge built by three monks?", "1890"),
        (BRIDGE, "In what year was the old bridge built by three monks?", "1890"),
        (ANNA, "Who bought a red bicycle for her son?", "Anna Miller"),
        (ANNA, "Which vehicle did Anna Miller buy for her son?", "a red bicycle"),
        ("The farmer has twelve cows.", "How many cows does the farmer have?", "twelve"),
        ("Three boys found the key.", "How many boys found the key?", "Three"),
        ("The children waited for two hours.", "How long did the children wait?", "two hours"),
        (PETER, "Where did Peter move?", "Berlin"),
        (PETER, "Why did Peter move to Berlin?", "the rents were low"),
        ("She went to the market to buy some fish.", "Why did she go to the market?", "to buy some fish"),
        ("The big dog jumped into the river.", "Which animal jumped into the river?", "The big dog"),
        ("The big dog jumped into the river.", "What did the big dog jump into?", "the river"),
        ("The parcel arrived yesterday.", "When did the parcel arrive?", "yesterday"),
        ("The museum has been closed since March.", "Since when has the museum been closed?", "March"),
        ("Maria can speak Spanish.", "What can Maria speak?", "Spanish"),
        ("My uncle is a baker.", "What is my uncle?", "a baker"),
    ],
)
def test_a_phrase_becomes_the_answer(text: str, question: str, answer: str) -> None:
    assert in_all(text)[question] == answer


def test_a_subject_that_says_nothing_is_neither_asked_for_nor_about() -> None:
    assert in_all("It was a cold morning.") == {}


def test_a_relative_clause_stays_out_of_the_answer_and_asks_nothing() -> None:
    found = in_all("The shop that sells bread opens at seven.")
    assert set(found.values()) == {"The shop"}
    assert all(question.endswith(" opens at seven?") for question in found)


def test_clauses_beside_each_other_are_asked_apart() -> None:
    text = "The letter came from London, and the postman brought it to the wrong house."
    found = in_all(text)
    assert found["Where did the letter come from?"] == "London"
    assert all("letter" not in question or "postman" not in question for question in found)


@pytest.mark.parametrize("text", LANGUAGE.texts)
def test_answers_are_whole_words_and_questions_do_not_tell_them(text: str) -> None:
    for one in asked(text, LANGUAGE, random.Random(4)):
        answer = text[one.start : one.end]
        assert answer
        assert not text[: one.start].endswith(tuple("abcdefghijklmnopqrstuvwxyz"))
        assert not text[one.end :][:1].isalnum()
        assert answer.lower() not in one.question.lower()
        assert one.question[0].isupper()
        assert one.question.endswith("?")
        assert "  " not in one.question


def test_the_same_seed_asks_the_same() -> None:
    for text in LANGUAGE.texts:
        assert questions(text, 1) == questions(text, 1)
    assert len({tuple(questions("The big dog jumped into the river.", seed)) for seed in range(20)}) > 1
