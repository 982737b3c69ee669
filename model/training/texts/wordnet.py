"""WordNet's files (wndb(5WN), sentences of verbs in senseidx(5WN)): what words mean, and examples of their use."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_PARTS = ("noun", "verb", "adj", "adv")


def examples(folder: Path) -> Iterator[str]:
    """The sentences and phrases in which a word is used."""
    for _, gloss in _synsets(folder):
        for example in re.findall(r'"([^"]+)"', gloss):
            if example.count(" ") >= 2:
                yield _ended(example)


def meanings(folder: Path) -> Iterator[str]:
    """`word : what it means`, of words that are one word."""
    for words, gloss in _synsets(folder):
        meaning = re.split(r'[;:]\s*"', gloss)[0].strip()
        plain = [word for word in words if word.isalpha() and word.islower()]
        if plain and 3 <= meaning.count(" ") <= 24:
            yield f"{' or '.join(plain[:2])} : {_ended(meaning)}"


def verb_sentences(folder: Path) -> Iterator[str]:
    """Short sentences, each with a verb that can stand in it."""
    frames = {}
    for line in (folder / "sents.vrb").read_text("latin-1").splitlines():
        number, _, sentence = line.partition(" ")
        frames[number] = sentence.strip()
    for line in (folder / "sentidx.vrb").read_text("latin-1").splitlines():
        key, _, numbers = line.partition(" ")
        verb = key.partition("%")[0].replace("_", " ")
        for number in numbers.replace(",", " ").split():
            if "%s" in frames.get(number, "") and verb.isalpha():
                yield _ended(frames[number].replace("%s", verb))


def _synsets(folder: Path) -> Iterator[tuple[list[str], str]]:
    """The words of each set of synonyms, and its gloss."""
    for part in _PARTS:
        for line in (folder / f"data.{part}").read_text("latin-1").splitlines():
            if not line.startswith(" "):
                fields, _, gloss = line.partition(" | ")
                values = fields.split()
                words = values[4 : 4 + 2 * int(values[3], 16) : 2]
                yield [re.sub(r"\(\w+\)$", "", word) for word in words], gloss.strip()


def _ended(sentence: str) -> str:
    sentence = sentence.strip()
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def common_words(folder: Path, part: str, count: int) -> list[str]:
    """The words that the tagged texts have most often, most often first."""
    number = f"{_PARTS.index(part) + 1}:"
    counts: Counter[str] = Counter()
    for line in (folder / "cntlist.rev").read_text("latin-1").splitlines():
        key, _, times = line.split()
        word, _, sense = key.partition("%")
        if sense.startswith(number) and word.isalpha() and word.islower():
            counts[word] += int(times)
    return [word for word, _ in counts.most_common(count)]
