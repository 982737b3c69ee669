"""A layer behind the pooling, in a folder of its own: `linear.weight` and `linear.bias` in model.safetensors."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from model.errors import CheckpointError
from model.heads import Dense


def load_dense(folder: Path, in_width: int, out_width: int, activation: str | None, *, has_bias: bool) -> Dense:
    """In float32, whatever the file holds. Raises: CheckpointError for tensors that aren't just these."""
    path = folder / "model.safetensors"
    if not path.is_file():
        pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))
        reason = f"{pickles[0].name} is a pickle, which can run code: convert it" if pickles else "no weights at all"
        raise CheckpointError(f"{path} is not there ({reason})")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error
    layer = Dense(in_width, out_width, activation, has_bias=has_bias)
    expected = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise CheckpointError(f"{path}: holds {found}, not {expected}")
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(tensors[name])
    return layer.eval()
