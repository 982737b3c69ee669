"""Examples out of encyclopedia pages: real sentences, with questions that grammar makes of them."""

import random
import re
from pathlib import Path
from typing import Any

from model.training.questions.clauses import Asked, asked
from model.training.questions.frame import Example
from model.training.questions.wiki_text import paragraphs

_RARE_A_PARAGRAPH = 3
_EMPTY = re.compile(r"(?:the|an?|this|that|his|her|its)?\W*", re.IGNORECASE)


def page_examples(dump: Path, language: Any, seed: int) -> list[Example]:
    """A few questions on each paragraph, in random order; the same for the same seed and the same parser."""
    chance = random.Random(seed)
    examples = []
    for text in paragraphs(dump, least=160, most=480):
        examples += [
            Example(text, one.question, text[one.start : one.end], one.start)
            for one in _chosen([one for one in asked(text, language, chance) if _is_good(one, text)], chance)
        ]
    chance.shuffle(examples)
    return examples


def _is_good(one: Asked, text: str) -> bool:
    is_short = len(one.question) < 110 and one.end - one.start < 70
    return is_short and len(one.question.split()) >= 5 and not _EMPTY.fullmatch(text[one.start : one.end])


def _chosen(found: list[Asked], chance: random.Random) -> list[Asked]:
    """Grammar mostly asks "what": one of those, and more of all others."""
    rare = [one for one in found if not one.question.startswith("What ")]
    common = [one for one in found if one.question.startswith("What ")]
    chance.shuffle(rare)
    chance.shuffle(common)
    return rare[:_RARE_A_PARAGRAPH] + common[:1]
