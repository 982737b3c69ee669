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
from model.families import (
    bert,
    deberta_v2,
    distilbert,
    electra,
    encoder_decoder,
    gpt2,
    llama,
    modernbert,
    mpnet,
    roberta,
)
from model.families.weight_map import Target, WeightMap
from model.linear import Linear

FAMILIES: dict[str, ModuleType] = {
    architecture: family
    for family in (bert, distilbert, roberta, electra, mpnet, modernbert, deberta_v2, gpt2, llama, encoder_decoder)
    for architecture in family.ARCHITECTURES
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

    Raises: UnsupportedArchitecture; CheckpointError for a config that can't be served, for a model that no memory is
    there for, and for tensors that are missing, unexpected or of another shape.
    """
    family = FAMILIES.get(checkpoint.architecture)
    if family is None:
        raise UnsupportedArchitecture(
            f"{checkpoint.path}: architecture {checkpoint.architecture!r} is not served; "
            f"served: {', '.join(sorted(FAMILIES))}"
        )
    architecture = _architecture(checkpoint, family)
    with torch.device(device), _default_dtype(dtype):
        try:
            model: nn.Module = family.build(checkpoint.config, architecture, device)
        except RuntimeError as error:  # torch has no narrower one for a CPU that is out of memory
            raise CheckpointError(f"{checkpoint.path}: no memory for a model of its config's sizes: {error}") from error
    _fill(model, checkpoint, family.weights(checkpoint.config, architecture))
    return model.eval().requires_grad_(False)


def _architecture(checkpoint: Checkpoint, family: ModuleType) -> str:
    """The config's, or the bare model's where it names a masked-language head that the weights have no tensor of.

    sentence-transformers trains bodies of such models, and saves them under the name that they started from.
    """
    name, _, task = checkpoint.architecture.partition("For")
    if task != "MaskedLM":
        return checkpoint.architecture
    weight_map: WeightMap = family.weights(checkpoint.config, checkpoint.architecture)
    targets = [weight_map.target(tensor) for tensor in checkpoint.names()]
    has_head = any(target is not None and target.parameter.startswith("head.") for target in targets)
    return checkpoint.architecture if has_head else f"{name}Model"


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
    places = _places(model)
    unexpected = []
    for name in sorted(checkpoint.names()):
        target = weight_map.target(name)
        place = places.pop(target.place, None) if target else None
        if target is not None and place is not None:
            # A fused tensor fills the segments of its Linear all at once, or they fill it one by one.
            for other in [key for key in places if key.startswith(f"{target.place}[")]:
                del places[other]
            places.pop(target.parameter, None)
            _copy(place, checkpoint, name, target)
        elif not weight_map.is_ignored(name):
            unexpected.append(name)
    if unexpected:
        raise CheckpointError(f"{checkpoint.path}: unexpected tensors: {_listed(unexpected)}")
    if places:
        raise CheckpointError(f"{checkpoint.path}: no tensor in the checkpoint fills {_listed(list(places))}")


def _places(model: nn.Module) -> dict[str, Tensor]:
    """Each parameter under its first name, and each row segment of a Linear: `...project_in.weight[query]`."""
    places: dict[str, Tensor] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            places[name] = parameter.data
            if isinstance(module, Linear) and "" not in module.segments:
                places |= {f"{name}[{segment}]": parameter.data[module.rows(segment)] for segment in module.segments}
    return places


def _copy(place: Tensor, checkpoint: Checkpoint, name: str, target: Target) -> None:
    shape = checkpoint.shape(name)
    expected = tuple(reversed(place.shape)) if target.is_transposed else tuple(place.shape)
    if shape != expected:
        raise CheckpointError(
            f"{checkpoint.path}: {name} has shape {list(shape)}, the config asks for {list(expected)}"
        )
    tensor = checkpoint.read(name)
    place.copy_(tensor.T if target.is_transposed else tensor)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
