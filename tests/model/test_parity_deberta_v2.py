"""DeBERTa-v2 and v3: outputs of small random checkpoints equal transformers', whatever attention reads of distances."""

import json
from pathlib import Path

import pytest
import small_models
import torch
from encoder_parity import assert_equals, assert_folder_equals
from safetensors.torch import load_file, save_file
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from model.checkpoints.registry import load, open_checkpoint
from model.disentangled import log_buckets
from model.errors import CheckpointError
from model.families import deberta_v2
from model.metadata import AttentionMetadata

CPU = torch.device("cpu")
# Buckets of one distance end at 8; 200 is the longest text.
LENGTHS = (9, 10, 40, 10, 200, 1)
XLARGE = {"conv_kernel_size": 3, "conv_act": "gelu"}


@pytest.mark.parametrize("architecture", deberta_v2.ARCHITECTURES)
@torch.inference_mode()
def test_every_architecture(architecture: str, tmp_path: Path) -> None:
    assert_equals(small_models.deberta_v2(architecture), tmp_path, lengths=LENGTHS, tolerance=2e-5)


@pytest.mark.parametrize("terms", [["c2p"], ["p2c"], "p2c|c2p", []])
@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("norm", ["none", "layer_norm"])
@torch.inference_mode()
def test_what_attention_reads(terms: list[str] | str, is_shared: bool, norm: str, tmp_path: Path) -> None:
    reference = small_models.deberta_v2(pos_att_type=terms, share_att_key=is_shared, norm_rel_ebd=norm)
    assert_equals(reference, tmp_path, lengths=(9, 70, 9), tolerance=2e-5)


@pytest.mark.parametrize(
    ("changes", "num_segments"),
    [
        ({"position_buckets": -1}, 1),
        ({"position_buckets": -1, "max_relative_positions": 12}, 1),
        ({"max_relative_positions": 50}, 1),
        ({"position_buckets": 256}, 1),
        ({"position_biased_input": True}, 1),
        ({"type_vocab_size": 2}, 2),
        ({"position_biased_input": True, "type_vocab_size": 2, "embedding_size": 32}, 2),
        ({"relative_attention": False, "position_biased_input": True}, 1),
        ({"hidden_act": "relu", "layer_norm_eps": 1e-3}, 1),
        ({"conv_kernel_size": 3}, 1),
        (XLARGE, 1),
        ({"conv_kernel_size": 5, "conv_groups": 4, "share_att_key": False, "position_biased_input": True}, 1),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
@torch.inference_mode()
def test_other_settings(changes: dict[str, object], num_segments: int, tmp_path: Path) -> None:
    reference = small_models.deberta_v2("DebertaV2ForMaskedLM", **changes)
    assert_equals(reference, tmp_path, num_segments, lengths=LENGTHS, tolerance=3e-5)


@pytest.mark.parametrize("changes", [{}, {"pooler_hidden_act": "tanh", "num_labels": 5}, {"num_labels": 1}])
@torch.inference_mode()
def test_poolers(changes: dict[str, object], tmp_path: Path) -> None:
    reference = small_models.deberta_v2("DebertaV2ForSequenceClassification", **changes)
    assert_equals(reference, tmp_path, lengths=(40, 7), tolerance=2e-5)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(16, 200), (32, 512), (256, 512), (16, 50)])
def test_buckets_equal_the_reference(num_buckets: int, max_distance: int) -> None:
    distances = torch.arange(-599, 600)
    expected = make_log_bucket_position(distances, num_buckets, max_distance).long()
    assert log_buckets(600, num_buckets, max_distance).equal(expected)


@pytest.mark.parametrize("legacy", [True, False])
@torch.inference_mode()
def test_both_masked_language_heads(legacy: bool, tmp_path: Path) -> None:
    """The other head, and what training left, are ignored; a config that names none takes the head that is there."""
    reference = small_models.deberta_v2("DebertaV2ForMaskedLM", legacy=legacy)
    small_models.save(reference, tmp_path)
    assert_folder_equals(tmp_path, reference, tolerance=2e-5)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["legacy"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_folder_equals(tmp_path, reference, tolerance=2e-5)
    add_tensors(tmp_path, "mask_predictions.dense.weight", "deberta.embeddings.position_embeddings.weight")
    other = "lm_predictions.lm_head.dense.weight" if legacy else "cls.predictions.transform.dense.weight"
    add_tensors(tmp_path, other)
    with pytest.raises(CheckpointError, match=other):
        load(open_checkpoint(tmp_path), device=CPU, dtype=torch.float32)
    (tmp_path / "config.json").write_text(json.dumps({**config, "legacy": legacy}))
    assert_folder_equals(tmp_path, reference, tolerance=2e-5)


def add_tensors(folder: Path, *names: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, **{name: torch.ones(3) for name in names}}, folder / "model.safetensors")


@torch.inference_mode()
def test_older_names_of_norms(tmp_path: Path) -> None:
    reference = small_models.deberta_v2("DebertaV2ForTokenClassification")
    small_models.save(reference, tmp_path)
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = load_file(tmp_path / "model.safetensors")
    for new, old in older.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert_folder_equals(tmp_path, reference, lengths=(9, 20), tolerance=2e-5)


@pytest.mark.parametrize("changes", [{}, XLARGE])
@torch.inference_mode()
def test_a_text_is_the_same_in_any_batch(changes: dict[str, object], tmp_path: Path) -> None:
    """A longer neighbour asks the table for further rows, and types are ignored: nothing changes."""
    folder = small_models.save(small_models.deberta_v2(**changes), tmp_path)
    model = load(open_checkpoint(folder), device=CPU, dtype=torch.float32)
    ids = torch.arange(2, 82)
    types = torch.zeros(80, dtype=torch.int64)
    together = model(ids, types, AttentionMetadata.pack([20, 60]))
    assert together.equal(model(ids, types + 1, AttentionMetadata.pack([20, 60])))
    alone = model(ids[:20], types[:20], AttentionMetadata.pack([20]))
    torch.testing.assert_close(together[:20], alone, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_blocks_share_one_table(tmp_path: Path) -> None:
    folder = small_models.save(small_models.deberta_v2(), tmp_path)
    model = load(open_checkpoint(folder), device=CPU, dtype=torch.bfloat16)
    assert len({id(block.attention.positions) for block in model.encoder.blocks}) == 1
    assert model.encoder.kernel_name == "disentangled"
    assert model.config.max_positions == 200
    output = model(torch.arange(2, 9), torch.zeros(7, dtype=torch.int64), AttentionMetadata.pack([3, 4]))
    assert output.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos_att_type": ["c2p", "p2p"]}, "pos_att_type is .*, with 'p2p'; served: c2p, p2c"),
        ({"norm_rel_ebd": "rms_norm"}, "norm_rel_ebd is 'rms_norm'"),
        ({"conv_kernel_size": 4}, "conv_kernel_size is 4; served: odd sizes"),
        ({"conv_kernel_size": 3, "conv_act": "swish-gate"}, "activation 'swish-gate'"),
        ({"attention_head_size": 64}, "attention_head_size is 64; served: 12"),
        ({"pooler_hidden_size": 64}, "pooler_hidden_size is 64; served: 48"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
    ],
)
def test_what_is_not_served_is_named(changes: dict[str, object], message: str) -> None:
    config = {**small_models.deberta_v2().config.to_dict(), **changes}
    with pytest.raises(CheckpointError, match=message):
        deberta_v2.build(config, "DebertaV2ForMaskedLM", CPU)
