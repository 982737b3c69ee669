"""Small random checkpoints, made by the reference library and saved as users save theirs."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
)

VOCABULARY_SIZE = 96
_BERT_SETTINGS = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def llama(**changes: object) -> PreTrainedModel:
    settings = {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    return _random(LlamaForCausalLM(LlamaConfig(**{**settings, **changes})))


def gpt2(**changes: object) -> PreTrainedModel:
    return _random(GPT2LMHeadModel(_gpt2_config(**changes)))


def bert(kind: str = "BertModel", **changes: object) -> PreTrainedModel:
    return _random(getattr(transformers, kind)(_bert_config(**changes)))


def distilbert(kind: str = "DistilBertModel", **changes: object) -> PreTrainedModel:
    settings = {
        "vocab_size": VOCABULARY_SIZE,
        "dim": 48,
        "hidden_dim": 80,
        "n_layers": 3,
        "n_heads": 4,
        "max_position_embeddings": 128,
    }
    return _random(getattr(transformers, kind)(DistilBertConfig(**{**settings, **changes})))


def roberta(kind: str = "RobertaModel", **changes: object) -> PreTrainedModel:
    """RoBERTa or XLM-RoBERTa, as the kind says: 128 positions and two rows for none. Token 1 is padding."""
    settings = {**_BERT_SETTINGS, "max_position_embeddings": 130, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    model = getattr(transformers, kind)
    return _random(model(model.config_class(**{**settings, **changes})))


def electra(kind: str = "ElectraModel", **changes: object) -> PreTrainedModel:
    settings = {**_BERT_SETTINGS, "embedding_size": 32}
    return _random(getattr(transformers, kind)(ElectraConfig(**{**settings, **changes})))


def mpnet(kind: str = "MPNetModel", **changes: object) -> PreTrainedModel:
    """Of 300 positions and two rows for none: more than its buckets tell apart."""
    settings = {**_BERT_SETTINGS, "max_position_embeddings": 302}
    return _random(getattr(transformers, kind)(MPNetConfig(**{**settings, **changes})))


def modernbert(kind: str = "ModernBertModel", **changes: object) -> PreTrainedModel:
    """Five layers, of which two see everything and three 8 tokens to each side. Token 0 is padding."""
    settings = {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "max_position_embeddings": 400,
        "local_attention": 16,
        "pad_token_id": 0,
        **{f"{name}_token_id": 1 for name in ("bos", "eos", "cls", "sep")},
    }
    return _random(getattr(transformers, kind)(ModernBertConfig(**{**settings, **changes})))


def deberta_v2(kind: str = "DebertaV2Model", **changes: object) -> PreTrainedModel:
    """As v3 is, but for its size: 16 buckets of distances. Changes make it v2, or what else there is."""
    settings = {
        **_BERT_SETTINGS,
        "max_position_embeddings": 200,
        "type_vocab_size": 0,
        "position_biased_input": False,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_buckets": 16,
    }
    return _random(getattr(transformers, kind)(DebertaV2Config(**{**settings, **changes})))


def encoder_decoder() -> PreTrainedModel:
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        _bert_config(), _gpt2_config(n_embd=48, n_head=4, add_cross_attention=True, is_decoder=True)
    )
    return _random(EncoderDecoderModel(config))


def save(model: PreTrainedModel, folder: Path, **options: object) -> Path:
    """Saves a model with a tokenizer of as many words as it has rows."""
    model.save_pretrained(folder, **options)
    words = {"[UNK]": 0} | {f"w{i}": i for i in range(1, VOCABULARY_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _gpt2_config(**changes: object) -> GPT2Config:
    settings = {"vocab_size": VOCABULARY_SIZE, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 128}
    return GPT2Config(**{**settings, **changes})


def _bert_config(**changes: object) -> BertConfig:
    return BertConfig(**{**_BERT_SETTINGS, **changes})


def _random(model: PreTrainedModel) -> PreTrainedModel:
    """Weights large enough that a mistake shows: the library's own start near zero. Norms keep ones, biases move."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if is_scale else 0.2 * noise)
    return model.eval()
