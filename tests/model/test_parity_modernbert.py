"""ModernBERT: outputs of small random checkpoints equal transformers', with texts far longer than a window."""

import json
from pathlib import Path

import pytest
import small_models
import torch
from encoder_parity import assert_equals, assert_folder_equals

from model.checkpoints.registry import load, open_checkpoint
from model.errors import CheckpointError
from model.families import modernbert
from model.metadata import AttentionMetadata

CPU = torch.device("cpu")
# A window reaches 8 tokens to each side: 9 are the most that all see one another, and 350 are more than one stretch.
LENGTHS = (9, 10, 40, 10, 350, 1)


@pytest.mark.parametrize("architecture", modernbert.ARCHITECTURES)
@torch.inference_mode()
def test_every_architecture(architecture: str, tmp_path: Path) -> None:
    assert_equals(small_models.modernbert(architecture), tmp_path, lengths=LENGTHS, tolerance=2e-5)


@pytest.mark.parametrize("architecture", modernbert.ARCHITECTURES)
@torch.inference_mode()
def test_every_architecture_with_every_bias(architecture: str, tmp_path: Path) -> None:
    biases = {
        "norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "classifier_bias": True,
        "decoder_bias": False,
        "classifier_pooling": "mean",
    }
    reference = small_models.modernbert(architecture, **biases)
    assert_equals(reference, tmp_path, lengths=(30, 30, 9), tolerance=2e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"classifier_pooling": "mean", "num_labels": 5},
        {"classifier_pooling": "cls", "classifier_activation": "relu"},
        {"hidden_activation": "silu", "norm_eps": 1e-3},
        {"local_attention": 7},
        {"local_attention": 1},
        {"local_attention": 1000},
        {"layer_types": ["sliding_attention"] * 5},
        {"layer_types": ["full_attention"] * 5},
        {"layer_types": ["sliding_attention", *["full_attention"] * 3, "sliding_attention"]},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 20_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            }
        },
    ],
    ids=lambda changes: "-".join(changes),
)
@torch.inference_mode()
def test_other_settings(changes: dict[str, object], tmp_path: Path) -> None:
    reference = small_models.modernbert("ModernBertForSequenceClassification", **changes)
    assert_equals(reference, tmp_path, lengths=(9, 40, 300), tolerance=2e-5)


@pytest.mark.parametrize(
    "older",
    [
        {},
        {"global_attn_every_n_layers": 2},
        {"global_attn_every_n_layers": 2, "global_rope_theta": 5000.0, "local_rope_theta": 70.0},
        {"global_rope_theta": 5000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ],
    ids=["defaults", "every", "thetas", "stretch"],
)
@torch.inference_mode()
def test_configs_of_older_checkpoints(older: dict[str, object], tmp_path: Path) -> None:
    """The reference reads the older keys itself, and our copy of its config has no others."""
    reference = small_models.modernbert(**older)
    small_models.save(reference, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in ("layer_types", "rope_parameters")}
    (tmp_path / "config.json").write_text(json.dumps({**kept, **older}))
    assert_folder_equals(tmp_path, reference, lengths=(9, 60), tolerance=2e-5)


@torch.inference_mode()
def test_types_are_ignored_and_neighbours_too(tmp_path: Path) -> None:
    folder = small_models.save(small_models.modernbert(), tmp_path)
    model = load(open_checkpoint(folder), device=CPU, dtype=torch.float32)
    ids = torch.arange(2, 82)
    types = torch.zeros(80, dtype=torch.int64)
    together = model(ids, types, AttentionMetadata.pack([20, 60]))
    assert together.equal(model(ids, types + 1, AttentionMetadata.pack([20, 60])))
    alone = model(ids[:20], types[:20], AttentionMetadata.pack([20]))
    torch.testing.assert_close(together[:20], alone, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_mean_in_bf16_is_taken_in_float32(tmp_path: Path) -> None:
    """A mean of many tokens in the weights' own precision would lose what the classifier tells apart."""
    reference = small_models.modernbert("ModernBertForSequenceClassification", classifier_pooling="mean")
    model = load(open_checkpoint(small_models.save(reference, tmp_path)), device=CPU, dtype=torch.bfloat16)
    hidden = torch.cat([torch.ones(1, 48), torch.full((399, 48), 1 / 256)]).bfloat16()
    pooled = model.head.pool(hidden, AttentionMetadata.pack([400]))
    expected = hidden.float().mean(0, keepdim=True).bfloat16()
    assert pooled.dtype == torch.bfloat16
    assert pooled.equal(expected)
    assert model(torch.arange(2, 9), torch.zeros(7, dtype=torch.int64), AttentionMetadata.pack([7])).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier_pooling": "max"}, "classifier_pooling is 'max'; served: 'cls' or 'mean'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"layer_types": ["full_attention"]}, r"layer_types are \['full_attention'\]; served: 5 of full_attention"),
        ({"layer_types": ["chunked_attention"] * 5}, "layer_types are .*chunked_attention"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}}, "rope type 'yarn'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear"}}}, "rope parameters lack 'factor'"),
        ({"hidden_activation": "swish-gate"}, "activation 'swish-gate'"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
    ],
)
def test_what_is_not_served_is_named(changes: dict[str, object], message: str) -> None:
    config = {**small_models.modernbert().config.to_dict(), **changes}
    with pytest.raises(CheckpointError, match=message):
        modernbert.build(config, "ModernBertForMaskedLM", CPU)
