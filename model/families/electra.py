"""ELECTRA (Clark et al., 2020): BERT that learned by finding replaced tokens; its tables may be narrower than it is."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from model.embeddings import Embedding, ProjectedEmbeddings, SegmentedEmbeddings
from model.encoder import EncoderModel
from model.families import bert
from model.families.bert import BertConfig
from model.families.config import require_count
from model.families.weight_map import WeightMap
from model.heads import ReplacedTokenDetector
from model.linear import Linear
from model.normalization import LayerNorm

_BODY = {**bert.BODY, "embeddings_project": "encoder.embeddings.projection"}
_HEADS = {
    "ElectraModel": {},
    "ElectraForPreTraining": {
        "discriminator_predictions.dense": "head.transform",
        "discriminator_predictions.dense_prediction": "head.score",
    },
    "ElectraForSequenceClassification": {
        "classifier.dense": "head.pooler",
        "classifier.out_proj": "head.classifier",
    },
    "ElectraForTokenClassification": {"classifier": "head.classifier"},
    "ElectraForQuestionAnswering": {"qa_outputs": "head.start_end"},
    "ElectraForMaskedLM": {
        "generator_predictions.dense": "head.transform",
        "generator_predictions.LayerNorm": "head.norm",
        "generator_lm_head": "head.decoder",
    },
}
ARCHITECTURES = tuple(_HEADS)
# Position numbers, and the copy of the tied token table.
_IGNORED = (r"embeddings\.position_ids", r"generator_lm_head\.weight")


@dataclass(frozen=True, slots=True)
class ElectraConfig(BertConfig):
    """BERT's, with the width of the tables."""

    table_width: int

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "ElectraConfig":
        return cls(**asdict(BertConfig.read(config)), table_width=require_count(config, "embedding_size"))


def build(config: Mapping[str, Any], architecture: str, device: torch.device) -> EncoderModel:
    """An encoder with the head that the architecture names; weights are empty."""
    c = ElectraConfig.read(config)
    embeddings = _embeddings(c)
    head = _head(c, architecture, embeddings.tokens)
    return EncoderModel(bert.compose_encoder(c, embeddings, device), head, c)


def weights(config: Mapping[str, Any], architecture: str) -> WeightMap:
    return WeightMap({**_BODY, **_HEADS[architecture]}, optional_prefix="electra.", ignored=_IGNORED)


def _embeddings(c: ElectraConfig) -> SegmentedEmbeddings:
    parts = (
        Embedding(c.vocabulary_size, c.table_width),
        Embedding(c.max_positions, c.table_width),
        Embedding(c.num_segments, c.table_width),
        LayerNorm(c.table_width, c.epsilon),
    )
    if c.table_width == c.width:
        return SegmentedEmbeddings(*parts)
    return ProjectedEmbeddings(*parts, Linear(c.table_width, c.width, has_bias=True))


def _head(c: ElectraConfig, architecture: str, tokens: Embedding) -> nn.Module | None:
    if architecture == "ElectraForPreTraining":
        return ReplacedTokenDetector(c.width, c.activation)
    return bert.compose_head(c, architecture, tokens, pooler="gelu", transform="gelu")
