"""A trained model as a Hugging Face folder: what was read from a checkpoint, under the names that it has there."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.registry import FAMILIES
from model.families.weight_map import Target
from model.linear import Linear

_SPECIAL_TOKENS = ("bos_token", "eos_token", "mask_token")


def write_checkpoint(
    model: nn.Module, source: Checkpoint, folder: Path, *, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Writes a folder that serves as `source` does, with the model's weights."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = FAMILIES[source.architecture].weights(source.config, source.architecture)
    tensors = {}
    for name in source.names():
        target = weight_map.target(name)
        if target is not None:
            tensors[name] = _read(model, target).detach().to("cpu", dtype).contiguous().clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {**source.config, "architectures": [source.architecture], "torch_dtype": str(dtype).removeprefix("torch.")}
    tokenizer = source.tokenizer()
    tokenizer_config = {name: getattr(tokenizer, name) for name in _SPECIAL_TOKENS if getattr(tokenizer, name)}
    if source.chat_template is not None:
        tokenizer_config["chat_template"] = source.chat_template
    for file_name, values in (
        ("config.json", config),
        ("generation_config.json", source.generation_config),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (folder / file_name).write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    tokenizer.backend.save(str(folder / "tokenizer.json"))


def _read(model: nn.Module, target: Target) -> Tensor:
    tensor: Tensor = model.get_parameter(target.parameter)
    if target.segment:
        module = model.get_submodule(target.parameter.rpartition(".")[0])
        assert isinstance(module, Linear)
        tensor = tensor[module.rows(target.segment)]
    return tensor.T if target.is_transposed else tensor
