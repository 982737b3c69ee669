"""Tokenizers of each kind that encoders have, as their checkpoints carry them, and checkpoints that use them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import small_models
from encoder_house import MINILM
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

SENTENCES = [
    "Angela Merkel was born in Hamburg and lived in Berlin.",
    "The European Union signed an agreement with the United Kingdom.",
    "New York is a city, and Paris is another city!",
    "안녕하세요, 저는 서울에 삽니다.",
    "שלום עולם, مرحبا بالعالم",
    "Microsoft's offices in Redmond aren't far from Seattle; they were unbelievably large.",
    "The cat sat on the mat, the dog ran in the park and the children played.",
]
_XLM_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]


@dataclass(frozen=True)
class Kind:
    """A tokenizer, and what the reference has to be told of it."""

    make: Callable[[], Tokenizer]
    mask: str
    unknown: str
    padding: str


def _wordpiece() -> Tokenizer:
    """MiniLM's own, which is BERT's: lower-cased, subwords begin with ##."""
    tokenizer = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _byte_level() -> Tokenizer:
    """As RoBERTa's: pairs of bytes, a space belongs to the word behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[*_XLM_TOKENS, AddedToken("<mask>", lstrip=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def _unigram() -> Tokenizer:
    """As XLM-RoBERTa's: likeliest pieces, a word begins with a mark; characters that it hasn't seen are unknown."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\n", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=[*_XLM_TOKENS, AddedToken("<mask>", lstrip=True)],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


KINDS = {
    "wordpiece": Kind(_wordpiece, "[MASK]", "[UNK]", "[PAD]"),
    "byte-level": Kind(_byte_level, "<mask>", "<unk>", "<pad>"),
    "unigram": Kind(_unigram, "<mask>", "<unk>", "<pad>"),
}
# Each family with a tokenizer of its kind: what makes the model, what its classes' names begin with.
FAMILIES: dict[str, tuple[Callable[..., PreTrainedModel], str, str]] = {
    "bert": (small_models.bert, "Bert", "wordpiece"),
    "distilbert": (small_models.distilbert, "DistilBert", "wordpiece"),
    "electra": (small_models.electra, "Electra", "wordpiece"),
    "mpnet": (small_models.mpnet, "MPNet", "wordpiece"),
    "roberta": (small_models.roberta, "Roberta", "byte-level"),
    "modernbert": (small_models.modernbert, "ModernBert", "byte-level"),
    "xlm-roberta": (small_models.roberta, "XLMRoberta", "unigram"),
    "deberta-v2": (small_models.deberta_v2, "DebertaV2", "unigram"),
}


@dataclass(frozen=True)
class Made:
    """A saved checkpoint as the reference has it; `max_tokens` is what it takes at once."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    kind: Kind
    folder: Path
    max_tokens: int


def make(family: str, task: str, folder: Path, **changes: object) -> Made:
    """A small random checkpoint for a task ("MaskedLM"; "" for the body alone); both sides read its tokenizer.json."""
    build, name, kind_name = FAMILIES[family]
    kind = KINDS[kind_name]
    tokenizer = kind.make()
    model = build(f"{name}For{task}" if task else f"{name}Model", vocab_size=tokenizer.get_vocab_size(), **changes)
    small_models.save(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    max_tokens = model.config.max_position_embeddings - (2 if family in ("roberta", "xlm-roberta", "mpnet") else 0)
    segments = ["token_type_ids"] if getattr(model.config, "type_vocab_size", 0) > 1 else []
    reader = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        mask_token=kind.mask,
        unk_token=kind.unknown,
        pad_token=kind.padding,
        model_max_length=max_tokens,
        model_input_names=["input_ids", "attention_mask", *segments],
    )
    return Made(model, reader, kind, folder, max_tokens)
