"""Every architecture that is served, small: built from a config of the reference library, without values in it."""

from collections.abc import Callable

import small_models
import torch
from torch import nn

from model.families import (
    bert,
    deberta_v2,
    distilbert,
    electra,
    encoder_decoder,
    gpt2,
    llama,
    modernbert,
    mpnet,
    roberta,
)

MODELS: dict[str, Callable[[], nn.Module]] = {
    **{
        architecture: lambda architecture=architecture, family=family, small=small: family.build(
            small(architecture).config.to_dict(), architecture, torch.device("cpu")
        )
        for family, small in (
            (bert, small_models.bert),
            (distilbert, small_models.distilbert),
            (roberta, small_models.roberta),
            (electra, small_models.electra),
            (mpnet, small_models.mpnet),
            (modernbert, small_models.modernbert),
            (deberta_v2, small_models.deberta_v2),
        )
        for architecture in family.ARCHITECTURES
    },
    "gpt2": lambda: gpt2.build(small_models.gpt2().config.to_dict(), "GPT2LMHeadModel", torch.device("cpu")),
    "llama": lambda: llama.build(small_models.llama().config.to_dict(), "LlamaForCausalLM", torch.device("cpu")),
    "encoder-decoder": lambda: encoder_decoder.build(
        small_models.encoder_decoder().config.to_dict(), "EncoderDecoderModel", torch.device("cpu")
    ),
}
