"""RoBERTa (Liu et al., 2019) and XLM-RoBERTa (Conneau et al., 2020): BERT with one segment and a late first position.

A position's row is counted from after the padding token's id, as fairseq did: rows 0 to `pad_token_id` stand for none.
Nothing is padded here, so a padding token that a text spells out is a token like any other and has a position.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from model.embeddings import Embedding, FirstRow, LaterRows, SegmentedEmbeddings
from model.encoder import EncoderModel
from model.errors import CheckpointError
from model.families import bert
from model.families.bert import BertConfig
from model.families.config import MAX_VOCABULARY, require_count
from model.families.weight_map import WeightMap
from model.normalization import LayerNorm

_HEADS = {
    "Model": {},
    "ForSequenceClassification": {"classifier.dense": "head.pooler", "classifier.out_proj": "head.classifier"},
    "ForTokenClassification": {"classifier": "head.classifier"},
    "ForQuestionAnswering": {"qa_outputs": "head.start_end"},
    "ForMaskedLM": {"lm_head.dense": "head.transform", "lm_head.layer_norm": "head.norm", "lm_head": "head.decoder"},
}
_ARCHITECTURES = {f"{name}{head}": names for name in ("Roberta", "XLMRoberta") for head, names in _HEADS.items()}
ARCHITECTURES = tuple(_ARCHITECTURES)
# Position numbers, a pooler that no head here reads, and the copies of tied weights.
_IGNORED = (r"embeddings\.position_ids", r"pooler\..*", r"lm_head\.decoder\..*")


@dataclass(frozen=True, slots=True)
class RobertaConfig(BertConfig):
    """BERT's, with the row where positions start; `max_positions` counts those from there on."""

    first_position: int

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "RobertaConfig":
        """Raises: CheckpointError, also where the rows for none leave none."""
        c = BertConfig.read(config)
        first = require_count(config, "pad_token_id", 1, least=0, most=MAX_VOCABULARY) + 1
        if c.max_positions <= first:
            raise CheckpointError(f"the checkpoint's {c.max_positions} positions start at row {first}")
        return cls(**{**asdict(c), "max_positions": c.max_positions - first, "first_position": first})


def build(config: Mapping[str, Any], architecture: str, device: torch.device) -> EncoderModel:
    """An encoder with the head that the architecture names; weights are empty."""
    c = RobertaConfig.read(config)
    segments = Embedding if c.num_segments > 1 else FirstRow
    embeddings = SegmentedEmbeddings(
        Embedding(c.vocabulary_size, c.width),
        LaterRows(c.first_position + c.max_positions, c.width, first=c.first_position),
        segments(c.num_segments, c.width),
        LayerNorm(c.width, c.epsilon),
    )
    head = bert.compose_head(c, architecture, embeddings.tokens, pooler="tanh", transform="gelu")
    return EncoderModel(bert.compose_encoder(c, embeddings, device), head, c)


def weights(config: Mapping[str, Any], architecture: str) -> WeightMap:
    return WeightMap({**bert.BODY, **_ARCHITECTURES[architecture]}, optional_prefix="roberta.", ignored=_IGNORED)
