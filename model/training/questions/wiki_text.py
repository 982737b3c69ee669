"""Plain paragraphs of a MediaWiki dump: markup, tables, notes and lists go, sentences stay."""

import bz2
import html
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_NOTE = re.compile(r"<ref[^>/]*/>|<ref.*?</ref>", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_TABLE = re.compile(r"\{\|.*?\|\}", re.DOTALL)
_FILE = re.compile(r"\[\[(?:File|Image|Category)[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]", re.IGNORECASE)
_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
_ADDRESS = re.compile(r"\[https?:\S+ ?([^\]]*)\]")
_EMPTY_BRACKETS = re.compile(r" ?\([^\w)]*\)")
_BRACKETS = re.compile(r" ?\([^()]*\)")


def paragraphs(dump: Path, least: int = 200, most: int = 700) -> Iterator[str]:
    """Units: characters. A longer paragraph is cut where a sentence ends."""
    with bz2.open(dump) as file:
        for _, element in ElementTree.iterparse(file):
            if element.tag.endswith("}text"):
                for paragraph in _plain(element.text or "").split("\n"):
                    yield from _cut(paragraph.strip(), least, most)
                element.clear()


def _plain(text: str) -> str:
    text = _TABLE.sub("", _NOTE.sub("", _COMMENT.sub("", html.unescape(text))))
    previous = ""
    while previous != text:
        previous, text = text, _TEMPLATE.sub("", text)
    text = _ADDRESS.sub(r"\1", _LINK.sub(r"\1", _FILE.sub("", text)))
    text = _TAG.sub("", text).replace("'''", "").replace("''", "").replace("\xa0", " ")
    return _BRACKETS.sub("", _EMPTY_BRACKETS.sub("", text))


def _cut(paragraph: str, least: int, most: int) -> Iterator[str]:
    if not paragraph[:1].isupper():
        return
    part = ""
    for sentence in re.split(r"(?<=[a-z0-9)]\.) (?=[A-Z])", paragraph):
        if part and len(part) + len(sentence) > most:
            if len(part) >= least:
                yield part
            part = ""
        part = f"{part} {sentence}" if part else sentence
    if least <= len(part) <= most:
        yield part
