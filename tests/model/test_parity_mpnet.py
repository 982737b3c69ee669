"""MPNet: outputs of small random checkpoints equal transformers', over all distances that its buckets tell apart."""

from pathlib import Path

import pytest
import small_models
import torch
from encoder_parity import assert_equals

from model.checkpoints.registry import load, open_checkpoint
from model.errors import CheckpointError
from model.families import mpnet
from model.metadata import AttentionMetadata

CPU = torch.device("cpu")
# Buckets of one distance end at 8, the last begins at 128, and 300 is the longest text.
LENGTHS = (8, 9, 10, 128, 9, 300, 1)


@pytest.mark.parametrize("architecture", mpnet.ARCHITECTURES)
@torch.inference_mode()
def test_every_architecture(architecture: str, tmp_path: Path) -> None:
    assert_equals(small_models.mpnet(architecture), tmp_path, lengths=LENGTHS, tolerance=2e-5)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("MPNetForSequenceClassification", {"num_labels": 5}),
        ("MPNetForMaskedLM", {"hidden_act": "relu", "layer_norm_eps": 1e-3}),
        ("MPNetModel", {"pad_token_id": 0}),
    ],
)
@pytest.mark.parametrize("lengths", [(37, 37, 37), (12,)])
@torch.inference_mode()
def test_other_settings(
    architecture: str, changes: dict[str, object], lengths: tuple[int, ...], tmp_path: Path
) -> None:
    assert_equals(small_models.mpnet(architecture, **changes), tmp_path, lengths=lengths, tolerance=2e-5)


@torch.inference_mode()
def test_the_blocks_share_one_table_and_types_are_ignored(tmp_path: Path) -> None:
    model = load(open_checkpoint(small_models.save(small_models.mpnet(), tmp_path)), device=CPU, dtype=torch.float32)
    tables = {id(block.attention.relative_bias) for block in model.encoder.blocks}
    assert (len(model.encoder.blocks), len(tables)) == (3, 1)
    ids, batch = torch.arange(2, 9), AttentionMetadata.pack([4, 3])
    first, second = (model(ids, torch.full((7,), kind), batch) for kind in (0, 1))
    assert first.equal(second)


@torch.inference_mode()
def test_a_text_is_the_same_in_any_batch(tmp_path: Path) -> None:
    """A longer neighbour asks the table for further distances, and changes nothing."""
    model = load(open_checkpoint(small_models.save(small_models.mpnet(), tmp_path)), device=CPU, dtype=torch.float32)
    ids = torch.arange(2, 82)
    types = torch.zeros(80, dtype=torch.int64)
    alone = model(ids[:20], types[:20], AttentionMetadata.pack([20]))
    together = model(ids, types, AttentionMetadata.pack([20, 60]))
    torch.testing.assert_close(together[:20], alone, atol=1e-5, rtol=0)


def test_the_longest_input_leaves_out_the_rows_of_no_position() -> None:
    config = small_models.mpnet().config.to_dict()
    assert mpnet.build(config, "MPNetModel", CPU).config.max_positions == 300
    assert mpnet.build({**config, "pad_token_id": 0}, "MPNetModel", CPU).config.max_positions == 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relative_attention_num_buckets": 64}, "relative_attention_num_buckets is 64; served: 32"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"hidden_act": "swish-gate"}, "activation 'swish-gate'"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
    ],
)
def test_what_is_not_served_is_named(changes: dict[str, object], message: str) -> None:
    config = {**small_models.mpnet().config.to_dict(), **changes}
    with pytest.raises(CheckpointError, match=message):
        mpnet.build(config, "MPNetForMaskedLM", CPU)
