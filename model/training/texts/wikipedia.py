"""Pages in Wikipedia's markup, as its dumps have them, to sentences."""

import bz2
import html
import re
from collections.abc import Iterator
from pathlib import Path

_MARKUP = (
    (r"<!--.*?-->", ""),
    (r"<ref[^>]*/>|<ref.*?</ref>", ""),
    (r"<(math|gallery|table|timeline|pre).*?</\1>", ""),
    (r"\{\|.*?\|\}", ""),
    (r"\[\[(?:File|Image|Category)[^\[\]]*(?:\[\[[^\]]*\]\][^\[\]]*)*\]\]", ""),
    (r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]", r"\1"),
    (r"\[https?:\S+ ?([^\]]*)\]", r"\1"),
    (r"<[^>]+>", ""),
    (r"'{2,}", ""),
)
_PLAIN = re.compile(r"[A-Z\"][^{}|\[\]=<>*#]+[.!?]")


def sentences(path: Path) -> Iterator[str]:
    """Whole sentences of 5 to 40 words, in their order."""
    dump = bz2.decompress(path.read_bytes()).decode("utf-8", "ignore")
    for text in re.findall(r"<text[^>]*>(.*?)</text>", dump, re.DOTALL):
        page = html.unescape(html.unescape(text))
        while page != (page := re.sub(r"\{\{[^{}]*\}\}", "", page)):
            pass
        for pattern, plain in _MARKUP:
            page = re.sub(pattern, plain, page, flags=re.DOTALL)
        for line in page.splitlines():
            if line[:1].isupper():
                for sentence in re.split(r"(?<=[a-z)\]][.!?]) +(?=[A-Z])", line):
                    if 5 <= len(sentence.split()) <= 40 and _PLAIN.fullmatch(sentence):
                        yield sentence
