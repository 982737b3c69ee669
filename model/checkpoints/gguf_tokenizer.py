"""A tokenizer from a GGUF file's own metadata: byte-level BPE (`gpt2`) or SentencePiece's BPE (`llama`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from model.errors import CheckpointError
from model.tokenizer import Tokenizer as JanusTokenizer

# Token types of the format.
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PRE_TOKENIZERS: dict[str, tuple[str, bool]] = {
    # name in the file: (how words are cut, whether every digit stands alone first)
    "default": (_GPT2, False),
    "gpt-2": (_GPT2, False),
    "smollm": (_GPT2, True),
    "starcoder": (_GPT2, True),
    "llama-bpe": (_LLAMA3, False),
    "llama3": (_LLAMA3, False),
    "qwen2": (_QWEN2, False),
}


def read_tokenizer(path: Path, metadata: Mapping[str, Any]) -> JanusTokenizer:
    """Raises: CheckpointError for a kind of vocabulary or pre-tokenizer that is not known, by its name."""
    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise CheckpointError(f"{path}: the file carries no vocabulary")
    try:
        if kind == "gpt2":
            backend = _byte_level(path, metadata, tokens)
        elif kind == "llama":
            backend = _sentencepiece(metadata, tokens)
        else:
            raise CheckpointError(f"{path}: a vocabulary of kind {kind!r} is not known; known: 'gpt2', 'llama'")
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: the vocabulary is broken: {error}") from error
    _add_special_tokens(backend, metadata, tokens)
    bos, eos = (_token(tokens, metadata.get(f"tokenizer.ggml.{name}_token_id")) for name in ("bos", "eos"))
    _add_template(backend, metadata, kind, bos, eos)
    return JanusTokenizer(backend, bos, eos)


def _byte_level(path: Path, metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in _PRE_TOKENIZERS:
        raise CheckpointError(f"{path}: pre-tokenizer {name!r} is not known; known: {', '.join(_PRE_TOKENIZERS)}")
    pattern, has_single_digits = _PRE_TOKENIZERS[name]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    if name in ("qwen2",):
        backend.normalizer = normalizers.NFC()
    digits = [pre_tokenizers.Digits(individual_digits=True)] if has_single_digits else []
    steps: list[pre_tokenizers.PreTokenizer] = [*digits]
    steps += [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """BPE over whole texts; a pair merges if the vocabulary has the sum, the better score first."""
    scores = metadata["tokenizer.ggml.scores"]
    ids = {token: i for i, token in enumerate(tokens)}
    pairs = []
    for token in ids:
        splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs += [(scores[ids[token]], ids[a], ids[b], a, b) for a, b in splits if a in ids and b in ids]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    unknown = next(
        (t for t, kind in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True) if kind == _UNKNOWN), None
    )
    merges = [(a, b) for _, _, _, a, b in pairs]
    backend = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    has_prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    steps: list[normalizers.Normalizer] = [normalizers.Prepend("▁")] if has_prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    back: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*back, decoders.Strip(content=" ", left=1)] if has_prefix else back)
    return backend


def _add_special_tokens(backend: Tokenizer, metadata: Mapping[str, Any], tokens: list[str]) -> None:
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    for token, kind in zip(tokens, kinds, strict=False):
        if kind in (_CONTROL, _UNKNOWN):
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == _USER_DEFINED:
            backend.add_tokens([AddedToken(token, special=False, normalized=False)])


def _add_template(backend: Tokenizer, metadata: Mapping[str, Any], kind: str, bos: str | None, eos: str | None) -> None:
    """What stands around every text: the tokens that the file says are added."""
    has_bos = bos is not None and metadata.get("tokenizer.ggml.add_bos_token", kind == "llama")
    has_eos = eos is not None and metadata.get("tokenizer.ggml.add_eos_token", False)
    if has_bos or has_eos:
        around = [*([bos] if has_bos else []), "$A", *([eos] if has_eos else [])]
        special = [(token, backend.token_to_id(token)) for token in {bos, eos} if token is not None]
        backend.post_processor = processors.TemplateProcessing(single=around, special_tokens=special)


def _token(tokens: list[str], token_id: int | None) -> str | None:
    return None if token_id is None or not 0 <= token_id < len(tokens) else tokens[token_id]
