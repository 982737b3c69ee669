"""From a checkpoint on disk to a family's model with every weight in place."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.gguf import GGUFCheckpoint
from model.checkpoints.safetensors import SafetensorsCheckpoint
from model.errors import CheckpointError, UnsupportedArchitecture
from model.families import bert, encoder_decoder, gpt2, llama
from model.families.weight_map import Target, WeightMap
from model.linear import Linear

FAMILIES: dict[str, ModuleType] = {
    architecture: family for family in (bert, gpt2, llama, encoder_decoder) for architecture in family.ARCHITECTURES
}


def open_checkpoint(path: Path) -> Checkpoint:
    """A Hugging Face folder or a GGUF file. Raises: CheckpointError for a path that is neither, or is broken."""
    if path.is_dir():
        return SafetensorsCheckpoint(path)
    if path.suffix == ".gguf":
        return GGUFCheckpoint(path)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder")
    raise CheckpointError(f"{path}: a checkpoint is a Hugging Face folder or a .gguf file")


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The checkpoint's model, ready for inference.

    Raises: UnsupportedArchitecture; CheckpointError for tensors that are missing, unexpected or of another shape.
    """
    family = FAMILIES.get(checkpoint.architecture)
    if family is None:
        raise UnsupportedArchitecture(
            f"{checkpoint.path}: architecture {checkpoint.architecture!r} is not served; "
            f"served: {', '.join(sorted(FAMILIES))}"
        )
    with torch.device(device), _default_dtype(dtype):
        model: nn.Module = family.build(checkpoint.config, checkpoint.architecture, device)
    _fill(model, checkpoint, family.weights(checkpoint.config, checkpoint.architecture))
    return model.eval().requires_grad_(False)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _fill(model: nn.Module, checkpoint: Checkpoint, weight_map: WeightMap) -> None:
    """Copies every tensor into its place, and proves that each place was filled once. Mutates: `model`."""
    places = {(name, segment): rows for name, segment, rows in _places(model)}
    unexpected = []
    for name in sorted(checkpoint.names()):
        target = weight_map.target(name)
        if target is not None and (target.parameter, target.segment) in places:
            _copy(places.pop((target.parameter, target.segment)), checkpoint, name, target)
        elif not weight_map.is_ignored(name):
            unexpected.append(name)
    if unexpected:
        raise CheckpointError(f"{checkpoint.path}: unexpected tensors: {_listed(unexpected)}")
    if places:
        missing = [f"{name}[{segment}]" if segment else name for name, segment in places]
        raise CheckpointError(f"{checkpoint.path}: no tensor in the checkpoint fills {_listed(missing)}")


def _places(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Each parameter once (a tied one under its first name), a Linear's by row segments."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            full_name = f"{path}.{name}" if path else name
            if isinstance(module, Linear):
                for segment in module.segments:
                    yield full_name, segment, parameter.data[module.rows(segment)]
            else:
                yield full_name, "", parameter.data


def _copy(place: Tensor, checkpoint: Checkpoint, name: str, target: Target) -> None:
    shape = checkpoint.shape(name)
    expected = tuple(reversed(place.shape)) if target.is_transposed else tuple(place.shape)
    if shape != expected:
        raise CheckpointError(f"{checkpoint.path}: {name} has shape {list(shape)}, the config asks for {list(expected)}")
    tensor = checkpoint.read(name)
    place.copy_(tensor.T if target.is_transposed else tensor)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
