"""A forward pass is a straight line of leaves: it can be traced, and only leaves and `+` compute."""

import operator
from collections.abc import Callable

import pytest
import small_models
import torch
from torch import fx, nn

from model.attention import Attend
from model.convolution import Convolution
from model.disentangled import DisentangledAttend, PositionTable, ProjectPositions
from model.embeddings import Embedding
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
from model.feed_forward import Activation, Gate
from model.heads import FirstToken, MeanToken, TakeRows, Widen
from model.linear import Linear
from model.normalization import LayerNorm, RMSNorm
from model.relative import RelativeBias
from model.rotary import Rotary

LEAVES = (
    *(Embedding, Linear, LayerNorm, RMSNorm, Rotary, RelativeBias, Attend, Gate, Activation),
    *(PositionTable, ProjectPositions, DisentangledAttend, Convolution),
    *(TakeRows, FirstToken, MeanToken, Widen),
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

# Sums, and the fields of the batch: the cache's layers.
ALLOWED = {operator.add, operator.getitem, getattr}


class LeafTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LEAVES)


@pytest.mark.parametrize("name", MODELS)
def test_only_leaves_compute(name: str) -> None:
    graph = LeafTracer().trace(MODELS[name]())
    strangers = [
        node.format_node()
        for node in graph.nodes
        if node.op == "call_method" or (node.op == "call_function" and node.target not in ALLOWED)
    ]
    assert strangers == []
