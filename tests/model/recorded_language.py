"""A spaCy pipeline that has read its sentences already: recorded parses, with what is asked of tokens.

`parses.jsonl` is what spaCy 3.8.18 with en_core_web_sm 3.8.0 made of each text: entities, sentences, and of each token
start, end, lemma, part of speech, tag, dependency and head.
"""

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PARSES = Path(__file__).with_name("parses.jsonl")


class Token:
    def __init__(self, doc: "Doc", number: int, values: list[Any]) -> None:
        start, end, self.lemma_, self.pos_, self.tag_, self.dep_, self._head = values
        self._doc, self.i, self.idx = doc, number, start
        self.text = doc.text[start:end]
        self.lower_ = self.text.lower()
        self.whitespace_ = " " if doc.text[end : end + 1] == " " else ""
        self.ent_type_ = next((label for first, last, label in doc.entities if first <= start < last), "")
        self.is_punct = all(unicodedata.category(letter).startswith("P") for letter in self.text)

    @property
    def children(self) -> list["Token"]:
        return [token for token in self._doc.tokens if token._head == self.i and token is not self]

    @property
    def lefts(self) -> list["Token"]:
        return [child for child in self.children if child.i < self.i]

    @property
    def subtree(self) -> list["Token"]:
        return sorted([self, *(one for child in self.children for one in child.subtree)], key=lambda one: one.i)

    @property
    def sent(self) -> "Span":
        return next(span for span in self._doc.sents if self in list(span))


class Span:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self.start = tokens[0].i

    def __iter__(self) -> Iterator[Token]:
        return iter(self._tokens)

    def __getitem__(self, place: int) -> Token:
        return self._tokens[place]


class Doc:
    def __init__(self, recorded: dict[str, Any]) -> None:
        self.text: str = recorded["text"]
        self.entities: list[tuple[int, int, str]] = recorded["ents"]
        self.tokens = [Token(self, number, values) for number, values in enumerate(recorded["tokens"])]
        self.sents = [Span([t for t in self.tokens if start <= t.idx < end]) for start, end in recorded["sents"]]


class RecordedLanguage:
    """Raises: KeyError for a text that was not recorded."""

    def __init__(self) -> None:
        records = [json.loads(line) for line in _PARSES.read_text("utf-8").splitlines()]
        self._docs = {record["text"]: Doc(record) for record in records}

    @property
    def texts(self) -> list[str]:
        return list(self._docs)

    def __call__(self, text: str) -> Doc:
        return self._docs[text]
