"""A config with a wrong value is refused by name, or served: whatever stands there, nothing else comes of it."""

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch

from model.checkpoints.registry import FAMILIES, load, open_checkpoint
from model.checkpoints.safetensors import SafetensorsCheckpoint
from model.errors import CheckpointError

CPU = torch.device("cpu")
WRONG: tuple[Any, ...] = (0, -1, 7, 10**9, 1e30, "x", None, [], [[]], {}, True)
MADE = {
    "bert": lambda: small_models.bert("BertForSequenceClassification"),
    "deberta_v2": small_models.deberta_v2,
    "deberta_v2 of old": lambda: small_models.deberta_v2(
        type_vocab_size=2, embedding_size=32, position_biased_input=True, conv_kernel_size=3, conv_act="gelu"
    ),
    "distilbert": small_models.distilbert,
    "electra": small_models.electra,
    "encoder_decoder": small_models.encoder_decoder,
    "gpt2": small_models.gpt2,
    "llama": lambda: small_models.llama(
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    ),
    "modernbert": small_models.modernbert,
    "mpnet": small_models.mpnet,
    "roberta": lambda: small_models.roberta("RobertaForTokenClassification"),
}


def places(config: dict[str, Any]) -> list[tuple[str, ...]]:
    """The way to every value, those in objects too."""
    found: list[tuple[str, ...]] = []
    for key, value in config.items():
        found.append((key,))
        if isinstance(value, dict):
            found += [(key, *rest) for rest in places(value)]
    return found


def changed(config: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    key, *rest = place
    return {**config, key: changed(config[key], tuple(rest), value) if rest else value}


def test_every_family_is_here() -> None:
    names = {family.__name__.rpartition(".")[2] for family in FAMILIES.values()}
    assert names == {name.partition(" ")[0] for name in MADE}


@pytest.mark.parametrize("name", MADE)
def test_any_wrong_value_is_refused_or_served(name: str, tmp_path: Path) -> None:
    checkpoint = SafetensorsCheckpoint(small_models.save(MADE[name](), tmp_path))
    # Keys of older or other exports, which the library does not write here.
    config = {"rope_theta": 1e4, "num_labels": 2, "head_dim": None, "rope_scaling": None, **checkpoint.config}
    num_refused = 0
    for place, value in itertools.product(places(config), WRONG):
        checkpoint.config = changed(config, place, value)
        started = time.monotonic()
        try:
            load(checkpoint, device=CPU, dtype=torch.float32)
        except CheckpointError:
            num_refused += 1
        except Exception as error:
            raise AssertionError(f"{place} = {value!r}: {error!r}") from error
        assert time.monotonic() - started < 5, (place, value)
    assert num_refused >= 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0, not a whole number from 1"),
        ({"hidden_size": "x"}, "hidden_size is 'x', not a whole number"),
        ({"hidden_size": True}, "hidden_size is True, not a whole number"),
        ({"num_attention_heads": 5, "head_dim": None}, "hidden_size, 48, can't be shared by 5 heads"),
        ({"num_key_value_heads": 4}, "num_key_value_heads, 4, don't divide 6 heads"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, not a whole number from 1 to 1024"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000, not a whole number"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings is 1000000000000"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, not a number above 0"),
        ({"hidden_act": ["silu"]}, r"hidden_act is \['silu'\], not a text"),
        ({"rope_parameters": "default"}, "rope_parameters is 'default', not an object"),
        ({"rope_parameters": {"rope_theta": -1}}, "rope_theta is not a number above 0"),
        ({"head_dim": 7}, "turn pairs of features, and a head has 7"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = small_models.save(small_models.llama(), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=message):
        load(open_checkpoint(folder), device=CPU, dtype=torch.float32)


def test_a_model_that_no_memory_holds(tmp_path: Path) -> None:
    folder = small_models.save(small_models.llama(), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": 1 << 24, "hidden_size": 1 << 20, "num_attention_heads": 1 << 12}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"no memory for a model of its config's sizes"):
        load(open_checkpoint(folder), device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("text", ["[]", '["hidden_size"]', "3", '"x"', "null", "{", "[" * 100_000, "1" * 5000])
def test_a_config_that_is_no_object(text: str, tmp_path: Path) -> None:
    folder = small_models.save(small_models.bert(), tmp_path)
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(open_checkpoint(folder), device=CPU, dtype=torch.float32)
