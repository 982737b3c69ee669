"""Examples out of sentences that others wrote: real wording, with questions that grammar makes of it."""

import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model.training.questions.clauses import Asked, asked
from model.training.questions.frame import Example
from model.training.questions.wiki_text import paragraphs
from model.training.questions.words import Words

_RARE_A_TEXT = 3
_SENTENCES_A_TEXT = (3, 4, 5)
_WORDS_OF_AN_ANSWER = 9
_NAMED_RATIO = 0.6
_EMPTY = re.compile(r"(?:the|an?|this|that|his|her|its)?\W*", re.IGNORECASE)


def page_examples(dump: Path, num_texts: int, language: Any, seed: int) -> list[Example]:
    """A few questions on each of so many paragraphs of a dump; the same for the same seed and the same parser."""
    chance = random.Random(seed)
    texts = list(paragraphs(dump, least=160, most=400))
    return _examples(chance.sample(texts, min(num_texts, len(texts))), language, chance)


def sentence_examples(path: Path, num_texts: int, language: Any, seed: int) -> list[Example]:
    """Questions on texts of a few unconnected sentences, one a line of the file, in which pronouns become names."""
    chance = random.Random(seed)
    sentences = [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]

    def text() -> str:
        words = Words(chance)
        picked = chance.sample(sentences, chance.choice(_SENTENCES_A_TEXT))
        return " ".join(_named(sentence, words, chance) for sentence in picked)

    return _examples((text() for _ in range(num_texts)), language, chance)


def _named(sentence: str, words: Words, chance: random.Random) -> str:
    pronoun, _, rest = sentence.partition(" ")
    if pronoun not in ("He", "She") or chance.random() >= _NAMED_RATIO:
        return sentence
    return f"{words.draw('man' if pronoun == 'He' else 'woman', chance)} {rest}"


def _examples(texts: Iterable[str], language: Any, chance: random.Random) -> list[Example]:
    return [
        Example(text, one.question, text[one.start : one.end], one.start)
        for text in texts
        for one in _chosen([one for one in asked(text, language, chance) if _is_good(one, text)], chance)
    ]


def _is_good(one: Asked, text: str) -> bool:
    is_short = len(one.question) < 110 and len(text[one.start : one.end].split()) <= _WORDS_OF_AN_ANSWER
    return is_short and len(one.question.split()) >= 4 and not _EMPTY.fullmatch(text[one.start : one.end])


def _chosen(found: list[Asked], chance: random.Random) -> list[Asked]:
    """Grammar mostly asks "what": one of those, and more of all others."""
    rare = [one for one in found if not one.question.startswith("What ")]
    common = [one for one in found if one.question.startswith("What ")]
    chance.shuffle(rare)
    chance.shuffle(common)
    return rare[:_RARE_A_TEXT] + common[:1]
