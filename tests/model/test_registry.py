"""A checkpoint that is not what its config says is refused, by the name of what is wrong."""

import json
from pathlib import Path

import pytest
import small_models
import torch
from safetensors.torch import load_file, save_file

from model.checkpoints.registry import load, open_checkpoint
from model.errors import CheckpointError, UnsupportedArchitecture
from model.metadata import AttentionMetadata

CPU = torch.device("cpu")


def spoiled(folder: Path, change: str) -> Path:
    """A small Llama with one thing wrong."""
    small_models.save(small_models.llama(), folder)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.1.self_attn.k_proj.weight"
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors["model.layers.1.self_attn.k_norm.weight"] = torch.ones(8)
    elif change == "shape":
        tensors[name] = torch.zeros(3, 48)
    elif change == "layers":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"no tensor .* fills decoder\.blocks\.1\.attention\.project_in\.weight\[key\]"),
        ("unexpected", r"unexpected tensors: model\.layers\.1\.self_attn\.k_norm\.weight"),
        ("shape", r"k_proj\.weight has shape \[3, 48\], the config asks for \[16, 48\]"),
        ("layers", r"no tensor .* fills decoder\.blocks\.3"),
    ],
)
def test_wrong_tensors(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(open_checkpoint(spoiled(tmp_path, change)), device=CPU, dtype=torch.float32)


def changed_config(folder: Path, **changes: object) -> Path:
    small_models.save(small_models.llama(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    folder = changed_config(tmp_path, architectures=["MambaForCausalLM"])
    with pytest.raises(UnsupportedArchitecture, match=r"MambaForCausalLM.*served: .*LlamaForCausalLM"):
        load(open_checkpoint(folder), device=CPU, dtype=torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"hidden_act": "swish-gate"}, "activation 'swish-gate' is not known"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn' is not known"),
    ],
)
def test_an_unusable_config_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(open_checkpoint(changed_config(tmp_path, **changes)), device=CPU, dtype=torch.float32)


@torch.inference_mode()
def test_a_body_under_the_name_of_a_masked_language_model(tmp_path: Path) -> None:
    """It is served without a head; a head of which one tensor is missing is still a mistake."""
    body = small_models.mpnet()
    small_models.save(body, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["MPNetForMaskedLM"]}))
    model = load(open_checkpoint(tmp_path), device=CPU, dtype=torch.float32)
    assert model.head is None
    ids = torch.arange(2, 9)
    hidden = model(ids, torch.zeros(7, dtype=torch.int64), AttentionMetadata.pack([7]))
    torch.testing.assert_close(hidden, body(ids[None]).last_hidden_state[0], atol=1e-4, rtol=0)
    weights = tmp_path / "model.safetensors"
    save_file({**load_file(weights), "lm_head.bias": torch.ones(96)}, weights)
    with pytest.raises(CheckpointError, match=r"no tensor .* fills head\.transform"):
        load(open_checkpoint(tmp_path), device=CPU, dtype=torch.float32)


def test_a_path_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"folder or a \.gguf file"):
        open_checkpoint(tmp_path / "weights.bin")


def test_a_tied_head_is_the_token_table(tmp_path: Path) -> None:
    small_models.save(small_models.llama(tie_word_embeddings=True), tmp_path)
    model = load(open_checkpoint(tmp_path), device=CPU, dtype=torch.bfloat16)
    assert model.head.output.weight.data_ptr() == model.decoder.embeddings.tokens.weight.data_ptr()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.parameters())
