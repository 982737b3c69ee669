"""Plain paragraphs out of a dump's markup."""

import bz2
from pathlib import Path

from model.training.questions.wiki_text import paragraphs

PAGE = """{{Infobox|name={{lang|en|Nothing}}}}
'''Oslo''' ({{IPA|uslu}}) is the [[capital city|capital]] of [[Norway]].<ref name="a">A note. It has sentences.</ref> It
== History ==
[[File:Oslo.jpg|thumb|A view of [[Oslo]] in winter]]
The town burned down in 1624.<ref name="b" /> It was rebuilt nearer to [https://example.org the fortress]. King Karl
{| class="table"
| A table is not text.
|}
* A list is no paragraph either.
Short.
"""


def dump(tmp_path: Path, text: str) -> Path:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    page = f"<page><title>Oslo</title><revision><text>{escaped}</text></revision></page>"
    path = tmp_path / "dump.xml.bz2"
    path.write_bytes(bz2.compress(f'<mediawiki xmlns="http://x/">{page}</mediawiki>'.encode()))
    return path


def test_markup_goes_and_sentences_stay(tmp_path: Path) -> None:
    assert list(paragraphs(dump(tmp_path, PAGE), least=20, most=200)) == [
        "Oslo is the capital of Norway. It",
        "The town burned down in 1624. It was rebuilt nearer to the fortress. King Karl",
    ]


def test_a_long_paragraph_is_cut_where_a_sentence_ends(tmp_path: Path) -> None:
    text = " ".join(f"This is sentence {number}." for number in range(10, 38))
    parts = list(paragraphs(dump(tmp_path, text), least=50, most=100))
    assert " ".join(parts) == text
    assert all(50 <= len(part) <= 100 and part.endswith(".") for part in parts)
