"""Text for training: read from the packages' own formats, or written by a decoder that is shown a few sentences."""

import bz2
from pathlib import Path

import small_models
import torch

from model.checkpoints.registry import load, open_checkpoint
from model.decoder import CausalLanguageModel
from model.metadata import AttentionMetadata
from model.training.texts import fortunes, wikipedia, wordnet
from model.training.texts.__main__ import gather, simplest
from model.training.texts.decoder import Writer

SYNSET = (
    "00014742 29 v 02 sleep 0 kip 0 003 @ 1 v 0000 02 + 02 00 + 22 00 | be asleep, as all of us are at night; "
    '"he slept all night"; "sleep well"  \n'
)
PAGE = """<page><text xml:space="preserve">{{Infobox|a={{b}}}}
'''Anna''' is a [[city|town]] in [[Norway]].&lt;ref&gt;A book.&lt;/ref&gt;
It has [http://x.org two] old bridges over the river.
[[File:x.jpg|thumb|A [[bridge]] there]]
== History ==
* A list of things that are not sentences.
Nobody knows</text></page>"""


def sources(folder: Path) -> Path:
    words = folder / "usr/share/wordnet"
    words.mkdir(parents=True)
    for part in ("noun", "adj", "adv"):
        (words / f"data.{part}").write_text("  1 This software\n")
    (words / "data.verb").write_text("  1 This software\n" + SYNSET)
    (words / "sents.vrb").write_text("1 The children %s all night \n2 The cat %ss \n")
    (words / "sentidx.vrb").write_text("sleep%2:29:00:: 1,2\n")
    (words / "cntlist.rev").write_text("dog%1:05:00:: 1 42\ncat%1:05:00:: 1 50\nsleep%2:29:00:: 1 99\n")
    cookies = folder / "usr/share/games/fortunes"
    cookies.mkdir(parents=True)
    (cookies / "wisdom").write_text("Time and tide wait\nfor nobody. So do I not.\n\t\t-- A Sage\n%\nHm.\n%\n")
    (cookies / "wisdom.dat").write_bytes(b"\x00\xff")
    dump = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    (folder / dump).write_bytes(bz2.compress(PAGE.encode()))
    return folder


def test_wordnet(tmp_path: Path) -> None:
    words = sources(tmp_path) / "usr/share/wordnet"
    assert list(wordnet.examples(words)) == ["he slept all night."]
    assert list(wordnet.meanings(words)) == ["sleep or kip : be asleep, as all of us are at night."]
    assert list(wordnet.verb_sentences(words)) == ["The children sleep all night.", "The cat sleeps."]
    assert wordnet.common_words(words, "noun", 2) == ["cat", "dog"]


def test_wikipedia(tmp_path: Path) -> None:
    [dump] = sources(tmp_path).glob("*.bz2")
    assert list(wikipedia.sentences(dump)) == ["Anna is a town in Norway.", "It has two old bridges over the river."]


def test_fortunes(tmp_path: Path) -> None:
    cookies = sources(tmp_path) / "usr/share/games/fortunes"
    assert list(fortunes.sentences(cookies)) == ["Time and tide wait for nobody.", "So do I not."]


def test_no_sentence_of_the_validation_is_gathered(tmp_path: Path) -> None:
    written = tmp_path / "written.txt"
    written.write_text("The sun rises in the west.\nThe sun rises early in the summer.\n")
    lines = gather(sources(tmp_path), ["A hen lays eggs.", "snow is cold."], written, seed=1)
    assert {"The sun rises early in the summer.", "A hen lays eggs.", "he slept all night."} <= set(lines)
    assert not {"The sun rises in the west.", "snow is cold."} & set(lines)


def test_the_simplest_lines_are_those_by_hand_and_short_ones() -> None:
    everyday = ["A hen lays eggs.", "Snow is cold."]
    long = "The " + "very " * 20 + "old man."
    lines = [*everyday * 6, "He slept all night long.", "Taxation, in principle, is theft.", long]
    assert simplest(lines, everyday, seed=1) == [*everyday * 5, "He slept all night long."]


def test_what_a_decoder_writes_depends_on_the_seed_alone(tmp_path: Path) -> None:
    """Its steps over the cache give each token the distribution that the whole text gives it."""
    small_models.save(small_models.llama(), tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    model = load(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(model, CausalLanguageModel)
    writer = Writer(model, checkpoint.tokenizer(), num_together=2, num_tokens=20)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
    first = writer.go_on(prompts, torch.Generator().manual_seed(3))
    assert first == writer.go_on(prompts, torch.Generator().manual_seed(3))
    assert first != writer.go_on(prompts, torch.Generator().manual_seed(4))
    assert {len(written) for written in first} == {20}
    likely = writer.go_on(prompts, torch.Generator().manual_seed(3), top_p=0.0)
    for prompt, written in zip(prompts, likely, strict=True):
        assert written == greedy(model, prompt, 20)


@torch.inference_mode()
def greedy(model: CausalLanguageModel, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor(ids), AttentionMetadata.pack([len(ids)], logit_rows=[len(ids) - 1]))
        ids.append(int(logits[0].argmax()))
    return ids[len(prompt) :]
