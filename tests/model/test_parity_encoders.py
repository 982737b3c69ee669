"""DistilBERT, RoBERTa, XLM-RoBERTa and ELECTRA: outputs of small random checkpoints equal transformers', to 1e-4."""

from collections.abc import Callable
from pathlib import Path

import pytest
import small_models
import torch
from encoder_parity import assert_equals
from transformers import PreTrainedModel

from model.checkpoints.registry import load, open_checkpoint
from model.encoder import EncoderModel
from model.families import distilbert, electra, roberta
from model.metadata import AttentionMetadata

CPU = torch.device("cpu")
MAKERS = {
    **dict.fromkeys(distilbert.ARCHITECTURES, small_models.distilbert),
    **dict.fromkeys(roberta.ARCHITECTURES, small_models.roberta),
    **dict.fromkeys(electra.ARCHITECTURES, small_models.electra),
}


@pytest.mark.parametrize("architecture", MAKERS)
@torch.inference_mode()
def test_every_architecture(architecture: str, tmp_path: Path) -> None:
    num_segments = 2 if architecture in electra.ARCHITECTURES else 1
    assert_equals(MAKERS[architecture](architecture), tmp_path, num_segments)


@pytest.mark.parametrize(
    ("reference", "num_segments"),
    [
        (lambda: small_models.distilbert("DistilBertForMaskedLM", activation="relu"), 1),
        (lambda: small_models.roberta("RobertaForSequenceClassification", num_labels=5), 1),
        (lambda: small_models.roberta("RobertaForMaskedLM", hidden_act="relu"), 1),
        (lambda: small_models.roberta("RobertaModel", pad_token_id=0, max_position_embeddings=129), 1),
        (lambda: small_models.roberta("RobertaModel", type_vocab_size=2), 2),
        (lambda: small_models.electra("ElectraForMaskedLM", embedding_size=48), 2),
        (lambda: small_models.electra("ElectraForPreTraining", hidden_act="relu"), 2),
        (lambda: small_models.electra("ElectraForSequenceClassification", num_labels=3, embedding_size=48), 2),
    ],
    ids=[
        "distilbert-relu",
        "roberta-labels",
        "roberta-relu",
        "roberta-padding-0",
        "roberta-segments",
        "electra-wide",
        "electra-relu",
        "electra-wide-labels",
    ],
)
@torch.inference_mode()
def test_other_settings(reference: Callable[[], PreTrainedModel], num_segments: int, tmp_path: Path) -> None:
    assert_equals(reference(), tmp_path, num_segments)


@pytest.mark.parametrize("architecture", ["DistilBertModel", "RobertaModel", "XLMRobertaModel"])
@torch.inference_mode()
def test_types_that_a_family_does_not_know_are_ignored(architecture: str, tmp_path: Path) -> None:
    small_models.save(MAKERS[architecture](architecture), tmp_path)
    model = load(open_checkpoint(tmp_path), device=CPU, dtype=torch.float32)
    assert isinstance(model, EncoderModel)
    ids, batch = torch.arange(2, 9), AttentionMetadata.pack([4, 3])
    first, second = (model(ids, torch.full((7,), kind), batch) for kind in (0, 1))
    assert first.equal(second)


def test_the_longest_input_of_roberta_leaves_out_the_rows_of_no_position() -> None:
    config = small_models.roberta().config.to_dict()
    assert roberta.build(config, "RobertaModel", CPU).config.max_positions == 128
    assert roberta.build({**config, "pad_token_id": 0}, "RobertaModel", CPU).config.max_positions == 129
