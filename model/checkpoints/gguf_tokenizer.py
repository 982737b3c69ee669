"""A tokenizer from a GGUF file's own metadata: byte-level BPE (`gpt2`) or SentencePiece's BPE (`llama`).

Source: llama.cpp's src/llama-vocab.cpp, which says what each name of a pre-tokenizer means.
"""

from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from model.checkpoints.gguf_metadata import GGUFMetadata
from model.tokenizer import Tokenizer as JanusTokenizer

# Token types of the format.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4


@dataclass(frozen=True, slots=True)
class _PreTokenizer:
    """How a text is cut into words before any merge."""

    pattern: str
    has_single_digits: bool = False  # every digit is cut out first
    is_composed: bool = False  # the text is brought to Unicode's form C first
    has_whole_words: bool = False  # a word that is a token is that token, whatever the merges would make
    adds_bos: bool = False  # what a file that doesn't say means


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SIGNS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_SIGNS_AND_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_SIGNS_AND_SPACES}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = {
    **dict.fromkeys(("default", "gpt-2"), _PreTokenizer(_GPT2)),
    **dict.fromkeys(("smollm", "starcoder"), _PreTokenizer(_GPT2, has_single_digits=True)),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3"), _PreTokenizer(_LLAMA3, has_whole_words=True, adds_bos=True)
    ),
    "smaug-bpe": _PreTokenizer(_LLAMA3),
    "tekken": _PreTokenizer(_TEKKEN, has_whole_words=True, adds_bos=True),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _PreTokenizer(_QWEN2, is_composed=True)),
}


def read_tokenizer(metadata: GGUFMetadata) -> JanusTokenizer:
    """Raises: CheckpointError for a kind of vocabulary or pre-tokenizer that is not known, by its name."""
    kind = metadata.text("tokenizer.ggml.model")
    if kind == "gpt2":
        backend, adds_bos = _byte_level(metadata)
    elif kind == "llama":
        backend, adds_bos = _sentencepiece(metadata), True
    else:
        raise metadata.error(f"a vocabulary of kind {kind!r} is not known; known: 'gpt2', 'llama'")
    _add_special_tokens(backend, metadata)
    bos, eos = metadata.token_id("bos"), metadata.token_id("eos")
    around = {
        "first": bos if metadata.flag("tokenizer.ggml.add_bos_token", adds_bos) else None,
        "last": eos if metadata.flag("tokenizer.ggml.add_eos_token", False) else None,
    }
    _surround(backend, metadata.tokens, {place: i for place, i in around.items() if i is not None})
    return JanusTokenizer(backend, *(None if i is None else metadata.tokens[i] for i in (bos, eos)))


def _byte_level(metadata: GGUFMetadata) -> tuple[Tokenizer, bool]:
    name = metadata.text("tokenizer.ggml.pre") or "default"
    if name not in _PRE_TOKENIZERS:
        raise metadata.error(f"pre-tokenizer {name!r} is not known; known: {', '.join(_PRE_TOKENIZERS)}")
    rule = _PRE_TOKENIZERS[name]
    merges = [merge.partition(" ") for merge in metadata.items("tokenizer.ggml.merges", str)]
    ids = {token: i for i, token in enumerate(metadata.tokens)}
    backend = _built(metadata, ids, [(left, right) for left, _, right in merges], ignore_merges=rule.has_whole_words)
    if rule.is_composed:
        backend.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(rule.pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    digits = [pre_tokenizers.Digits(individual_digits=True)] if rule.has_single_digits else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*digits, *steps])
    backend.decoder = decoders.ByteLevel()
    return backend, rule.adds_bos


def _sentencepiece(metadata: GGUFMetadata) -> Tokenizer:
    """BPE over whole texts; a pair merges if the vocabulary has the sum, the better score first."""
    tokens, scores = metadata.tokens, metadata.items("tokenizer.ggml.scores", float)
    kinds = metadata.items("tokenizer.ggml.token_type", int)
    if not len(tokens) == len(scores) == len(kinds):
        raise metadata.error(f"{len(tokens)} tokens have {len(scores)} scores and {len(kinds)} types")
    ids = {token: i for i, token in enumerate(tokens)}
    pairs = []
    for token, whole in ids.items():
        splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs += [(-scores[whole], ids[a], ids[b], a, b) for a, b in splits if a in ids and b in ids]
    merges = [(a, b) for *_, a, b in sorted(pairs)]
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
    backend = _built(metadata, ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    # A space stands before each stretch of text, also after a special token.
    has_prefix = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    prefix: list[normalizers.Normalizer] = [normalizers.Prepend("▁")] if has_prefix else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    back: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*back, decoders.Strip(content=" ", left=1)] if has_prefix else back)
    return backend


def _built(
    metadata: GGUFMetadata,
    ids: dict[str, int],
    merges: list[tuple[str, str]],
    *,
    unk_token: str | None = None,
    fuse_unk: bool = False,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> Tokenizer:
    try:
        model = models.BPE(
            ids,
            merges,
            unk_token=unk_token,
            fuse_unk=fuse_unk,
            byte_fallback=byte_fallback,
            ignore_merges=ignore_merges,
        )
    except Exception as error:  # the library raises nothing narrower
        raise metadata.error(f"the vocabulary is broken: {error}") from error
    return Tokenizer(model)


def _add_special_tokens(backend: Tokenizer, metadata: GGUFMetadata) -> None:
    """What is one token wherever it stands in a text; a special one is left out of decoded texts too."""
    if not metadata.has("tokenizer.ggml.token_type"):
        return
    kinds = list(zip(metadata.tokens, metadata.items("tokenizer.ggml.token_type", int), strict=False))
    special = [token for token, kind in kinds if kind in (_CONTROL, _UNKNOWN)]
    plain = [token for token, kind in kinds if kind == _USER_DEFINED]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])


def _surround(backend: Tokenizer, tokens: list[str], around: dict[str, int]) -> None:
    """What stands around every text: the tokens that the file says are added, `first` and `last`.

    A template names them by their place: a `:` or a `$` in a token's own name would be part of its language.
    """
    first, last = ([place] if place in around else [] for place in ("first", "last"))
    if around:
        second = [f"{piece}:1" for piece in (*first, "$B", *last)]
        backend.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, *second],
            special_tokens=[{"id": place, "ids": [i], "tokens": [tokens[i]]} for place, i in around.items()],
        )
