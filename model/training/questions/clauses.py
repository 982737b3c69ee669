"""Questions made of sentences by their grammar: a phrase becomes the answer, the rest of its clause the question.

"The bridge was built in 1890 by monks." -> "When was the bridge built by monks?", "Who was the bridge built by?". The
parse comes from spaCy, which only this needs. After Heilman and Smith, "Good Question! Statistical Ranking for Question
Generation" (2010), without the ranking.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.training.questions.words import is_first_name, kind_of

_PERSON, _PLACE, _TIME = ("PERSON",), ("GPE", "LOC", "FAC"), ("DATE", "TIME")
_SUBJECTS = ("nsubj", "nsubjpass")
_LEFT_OUT = ("punct", "cc", "conj", "advcl", "parataxis", "ccomp", "mark")
_UNITS = ("year", "month", "week", "day", "hour", "minute", "second", "decade", "century")
_VAGUE = ("it", "this", "that", "these", "those", "which", "who", "there", "what", "one", "they", "we", "i", "you")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and the characters `[start, end)` of the text that answer it."""

    question: str
    start: int
    end: int


def asked(text: str, language: Any, chance: random.Random) -> Iterator[Asked]:
    """All that the grammar of a text lets us ask."""
    for sentence in language(text).sents:
        for verb in sentence:
            if verb.dep_ in ("ROOT", "conj", "relcl", "ccomp", "advcl") and verb.pos_ in ("VERB", "AUX"):
                yield from _of_clause(verb, chance)


def _of_clause(verb: Any, chance: random.Random) -> Iterator[Asked]:
    subjects = [child for child in verb.children if child.dep_ in _SUBJECTS]
    helpers = _helpers(verb)
    is_finite = (verb.tag_ not in ("VB", "VBG", "VBN") or helpers) and not any(one.lower_ == "to" for one in helpers)
    if len(subjects) != 1 or not is_finite:
        return
    subject = subjects[0]
    if subject.i > verb.i or any(token.is_punct or token.tag_ in ("WDT", "WP") for token in _phrase(subject)):
        return
    yield from _who(verb, subject, chance)
    if subject.lower_ in _VAGUE:
        return
    for child in verb.children:
        if child.i < verb.i and child.dep_ not in ("prep", "npadvmod"):
            continue
        if child.dep_ == "dobj" and child.pos_ in ("NOUN", "PROPN"):
            yield from _object(verb, subject, child, chance)
        elif child.dep_ in ("prep", "agent") and (target := _target(child)) is not None:
            yield from _of_preposition(verb, subject, child, target, chance)
        elif child.dep_ == "advcl":
            yield from _reason(verb, subject, child, chance)
        elif child.dep_ == "attr" and verb.lemma_ == "be" and child.pos_ in ("NOUN", "PROPN"):
            word = "Who" if subject.ent_type_ in _PERSON else "What"
            yield _make(f"{word} {verb.text} {_noun(subject)}?", _phrase(child))
        elif child.dep_ == "npadvmod" and child.ent_type_ in _TIME:
            yield _make(_inverted(chance.choice(("When", "At what time")), verb, subject, child), _phrase(child))


def _who(verb: Any, subject: Any, chance: random.Random) -> Iterator[Asked]:
    """The subject is asked for: nothing changes place."""
    if subject.pos_ not in ("NOUN", "PROPN") or verb.dep_ == "relcl":
        return
    word = _asking(subject, chance)
    behind = _rest(verb, None)
    if not behind:
        return
    rest = " ".join([*(token.text for token in _helpers(verb)), verb.text, behind])
    numbers = [child for child in subject.children if child.dep_ == "nummod"]
    if numbers and chance.random() < 0.7 and subject.tag_ == "NNS":
        left = " ".join(t.text for t in subject.subtree if t.i > numbers[0].i and t.i <= subject.i)
        yield _make(f"How many {left} {rest}?", numbers)
    else:
        yield _make(f"{word} {rest}?", _phrase(subject))


def _asking(noun: Any, chance: random.Random) -> str:
    """What a question about a noun begins with: by its kind where that can be told."""
    if _is_person(noun):
        return "Who"
    if noun.ent_type_ in _PLACE:
        return chance.choice(("Which place", "What place", "What"))
    if noun.ent_type_ in ("ORG", "NORP"):
        return chance.choice(("Which group", "Who", "What"))
    if kind := kind_of(noun.lemma_.lower()):
        return chance.choice((f"Which {kind}", f"What {kind}", "What"))
    if any(child.dep_ in ("amod", "compound") for child in noun.lefts) and noun.tag_ in ("NN", "NNS"):
        return chance.choice((f"Which {noun.lower_}", f"What {noun.lower_}", "What", "What"))
    return "What"


def _is_person(noun: Any) -> bool:
    if noun.i <= noun.sent.start + 1 and is_first_name(noun.sent[0].text):
        return True
    return noun.ent_type_ in _PERSON or kind_of(noun.lemma_.lower()) == "person"


def _object(verb: Any, subject: Any, target: Any, chance: random.Random) -> Iterator[Asked]:
    numbers = [child for child in target.children if child.dep_ == "nummod"]
    if numbers and chance.random() < 0.8 and target.tag_ == "NNS":
        counted = " ".join(t.text for t in target.subtree if numbers[0].i < t.i <= target.i)
        yield _make(_inverted(f"How many {counted}", verb, subject, target), numbers)
    else:
        yield _make(_inverted(_asking(target, chance), verb, subject, target), _phrase(target))


def _of_preposition(verb: Any, subject: Any, child: Any, target: Any, chance: random.Random) -> Iterator[Asked]:
    preposition, kind = child.lower_, target.ent_type_
    phrase = _phrase(target)
    is_duration = target.lemma_.lower() in _UNITS
    if preposition == "by" and child.dep_ == "agent":
        if chance.random() < 0.5:
            yield _make(_inverted(_asking(target, chance), verb, subject, child, behind="by"), phrase)
        else:
            yield _make(_inverted("By whom" if _is_person(target) else "By what", verb, subject, child), phrase)
    elif preposition == "for" and is_duration:
        yield _make(_inverted(chance.choice(("How long", "For how long")), verb, subject, child), phrase)
    elif (
        kind in _TIME
        and target.lemma_ != "age"
        and preposition in ("in", "on", "at", "since", "until", "during", "around", "about")
    ):
        words = ["When"]
        if preposition in ("since", "until"):
            words = [f"{preposition.capitalize()} when"]
        elif target.text.isdigit() and len(target.text) == 4:
            words += ["In what year", "In which year", "What year"]
        yield _make(_inverted(chance.choice(words), verb, subject, child), phrase)
    elif kind in _PLACE and preposition in ("in", "at", "from", "to", "near", "on", "into"):
        words = {"from": ["Where", "From where"], "to": ["Where"]}.get(preposition, ["Where", "Where", "In what place"])
        behind = "from" if preposition == "from" and words[0] == "Where" else None
        word = chance.choice(words) if behind is None else "Where"
        yield _make(_inverted(word, verb, subject, child, behind=behind), phrase)
    elif preposition == "because" or child.text.lower() in ("due",):
        yield _make(_inverted("Why", verb, subject, child), phrase)
    elif preposition in ("with", "to", "for", "from", "about", "of", "against", "into", "on", "as"):
        yield _make(_inverted(_asking(target, chance), verb, subject, child, behind=preposition), phrase)


def _reason(verb: Any, subject: Any, child: Any, chance: random.Random) -> Iterator[Asked]:
    tokens = list(child.subtree)
    mark = tokens[0]
    if mark.lower_ in ("because", "since") and len(tokens) > 3:
        yield _make(_inverted(chance.choice(("Why", "Why", "For what reason")), verb, subject, child), tokens[1:])
    elif mark.lower_ == "to" and child.i > verb.i and len(tokens) < 12:
        yield _make(_inverted(chance.choice(("Why", "For what purpose")), verb, subject, child), tokens)


def _inverted(word: str, verb: Any, subject: Any, without: Any, *, behind: str | None = None) -> str:
    """The clause as a question, without the phrase that answers it."""
    helpers = _helpers(verb)
    who = _noun(subject)
    if verb.pos_ == "AUX" and not helpers:
        parts = [word, verb.text, who, _rest(verb, without)]
    elif helpers:
        parts = [word, helpers[0].text, who, *(token.text for token in helpers[1:]), verb.text, _rest(verb, without)]
    else:
        do = {"VBD": "did", "VBN": "did", "VBZ": "does"}.get(verb.tag_, "do")
        parts = [word, do, who, verb.lemma_, _rest(verb, without)]
    if behind:
        parts.append(behind)
    return " ".join(part for part in parts if part) + "?"


def _helpers(verb: Any) -> list[Any]:
    return [child for child in verb.children if child.dep_ in ("aux", "auxpass", "neg") and child.i < verb.i]


def _rest(verb: Any, without: Any) -> str:
    """What else the verb governs, after it; at most two phrases."""
    kept: list[Any] = []
    num_phrases = 0
    for child in verb.children:
        if child == without or child.i < verb.i or child.dep_ in _LEFT_OUT or child.dep_ in _SUBJECTS:
            continue
        subtree = list(child.subtree)
        if len(subtree) > 9 or num_phrases == 2:
            break
        kept += subtree
        num_phrases += 1
    return _text(kept)


def _noun(subject: Any) -> str:
    tokens = _phrase(subject)
    text = _text(tokens)
    return text if tokens[0].ent_type_ or tokens[0].pos_ == "PROPN" else text[0].lower() + text[1:]


def _phrase(head: Any) -> list[Any]:
    """A noun with what belongs closely to it, other nouns beside it too: no relative clauses, no appositions."""
    dropped: set[int] = set()
    for child in head.children:
        if child.dep_ in ("relcl", "appos", "acl", "advcl") and child.i > head.i:
            dropped |= {token.i for token in child.subtree}
    tokens = [token for token in head.subtree if token.i not in dropped]
    while len(tokens) > 1 and tokens[-1].dep_ in ("punct", "cc"):
        tokens.pop()
    return tokens


def _target(preposition: Any) -> Any | None:
    return next((child for child in preposition.children if child.dep_ == "pobj" and child.pos_ != "PRON"), None)


def _text(tokens: list[Any]) -> str:
    text = ""
    for before, token in zip([None, *tokens], tokens, strict=False):
        is_apart = before is not None and (before.whitespace_ or token.i != before.i + 1) and not token.is_punct
        text += f" {token.text}" if is_apart else token.text
    return text.strip().rstrip(",;:")


def _make(question: str, answer: list[Any]) -> Asked:
    return Asked(question, answer[0].idx, answer[-1].idx + len(answer[-1].text))
