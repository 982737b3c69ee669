"""Examples out of sentences: which texts are made, which of grammar's questions are taken."""

import bz2
from pathlib import Path
from typing import Any

import pytest
from recorded_language import Doc, RecordedLanguage

from model.training.questions import pages
from model.training.questions.clauses import Asked
from model.training.questions.pages import page_examples, sentence_examples

LANGUAGE = RecordedLanguage()
PLAIN = "The old man sat on a bench. The bench was made of wood."


class Listening:
    """Notes the texts that it is given, and reads one of its own instead."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, text: str) -> Doc:
        self.texts.append(text)
        return LANGUAGE("It was a cold morning.")


def sentences(folder: Path, lines: list[str]) -> Path:
    path = folder / "sentences.txt"
    path.write_text("\n".join(["# A comment.", "", *lines]) + "\n", "utf-8")
    return path


def made(folder: Path, seed: int, num_texts: int = 60) -> list[str]:
    language = Listening()
    lines = [f"{who} sat on chair {number}." for number, who in enumerate(["He", "She", "The dog"] * 4)]
    assert sentence_examples(sentences(folder, lines), num_texts, language, seed) == []
    return language.texts


def test_a_text_is_a_few_sentences_each_once(tmp_path: Path) -> None:
    texts = made(tmp_path, 1)
    assert {text.count(" sat on ") for text in texts} == {3, 4, 5}
    for text in texts:
        places = [part.split(".")[0] for part in text.split("chair ")[1:]]
        assert len(set(places)) == len(places)
        assert "#" not in text
    assert texts == made(tmp_path, 1)
    assert texts != made(tmp_path, 2)


def test_some_pronouns_become_names(tmp_path: Path) -> None:
    whole = " ".join(made(tmp_path, 3, 200))
    starts = [part.split()[-1] for part in whole.split(" sat on ")[:-1]]
    named = [start for start in starts if start not in ("He", "She", "dog")]
    assert len(set(named)) > 10
    assert 0.5 < len(named) / (len(named) + starts.count("He") + starts.count("She")) < 0.7
    assert all(name[0].isupper() for name in named)


def test_examples_of_a_dump_stand_at_their_start(tmp_path: Path) -> None:
    """Paragraphs that are too short for a question are not read; the parser sees no other."""
    path = tmp_path / "dump.xml.bz2"
    read = Listening()
    long = " ".join(f"This is sentence {number}." for number in range(10, 20))
    page = f"<page><revision><text>{long}\nShort.</text></revision></page>"
    path.write_bytes(bz2.compress(f'<mediawiki xmlns="http://x/">{page}</mediawiki>'.encode()))
    assert page_examples(path, 5, read, 1) == []
    assert read.texts == [long]


def test_examples_are_what_the_text_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_SENTENCES_A_TEXT", (1,))
    path = sentences(tmp_path, [text for text in LANGUAGE.texts if not text.startswith(("She", "He"))])
    examples = sentence_examples(path, 40, LANGUAGE, 5)
    assert len({example.context for example in examples}) > 8
    for example in examples:
        assert example.context[example.start : example.start + len(example.answer)] == example.answer
        assert example.answer
        assert len(example.question.split()) >= 4
    common = [example for example in examples if example.question.startswith("What ")]
    assert 0 < len(common) < len(examples) / 2


@pytest.mark.parametrize(
    ("question", "answer", "is_good"),
    [
        ("Who sat on a bench?", "The old man", True),
        ("Who sat?", "The old man", False),
        ("Who sat on a bench?", "The", False),
        ("Who sat on a bench, " + "and on a chair, " * 8 + "too?", "The old man", False),
        ("What did the old man do that day?", "man sat on a bench. The bench was made of", False),
    ],
    ids=["good", "short question", "nothing but an article", "long question", "long answer"],
)
def test_poor_questions_are_left_out(
    question: str, answer: str, is_good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = PLAIN.index(answer)
    one = Asked(question, start, start + len(answer))

    def only(text: str, language: Any, chance: Any) -> list[Asked]:
        return [one]

    monkeypatch.setattr(pages, "asked", only)
    monkeypatch.setattr(pages, "_SENTENCES_A_TEXT", (1,))
    found = sentence_examples(sentences(tmp_path, [PLAIN]), 1, LANGUAGE, 1)
    assert [(example.question, example.answer, example.start) for example in found] == (
        [(question, answer, start)] if is_good else []
    )
