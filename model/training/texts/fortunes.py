"""The fortune program's cookies, as lines."""

import re
from collections.abc import Iterator
from pathlib import Path

# Collections that are drawings, file dumps or jargon more than sentences.
_LEFT_OUT = (
    "ascii-art",
    "art",
    "debian",
    "linux",
    "knghtbrd",
    "perl",
    "computers",
    "linuxcookie",
    "tao",
    "songs-poems",
)


def sentences(folder: Path) -> Iterator[str]:
    """Sentences of 4 to 40 words, without who said them."""
    for path in sorted(folder.iterdir()):
        if path.suffix or path.name in _LEFT_OUT:
            continue
        for cookie in path.read_text("utf-8", "replace").split("\n%\n"):
            text = " ".join(line.strip() for line in cookie.partition("\t\t--")[0].splitlines())
            for sentence in re.split(r"(?<=[a-z][.!?]) +(?=[A-Z])", text.partition(" -- ")[0]):
                if 4 <= len(sentence.split()) <= 40 and sentence.endswith((".", "!", "?")):
                    yield sentence
