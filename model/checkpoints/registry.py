"""From a checkpoint on disk to a family's model with every weight in place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.gguf import GGUFCheckpoint
from model.checkpoints.packing import Packing
from model.checkpoints.places import Place, dense_places, packed_places, without_memory
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


def load(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    packing: Packing | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """The checkpoint's model, ready for inference.

    With a packing, for a CPU in float32 alone, Linears and tables of tokens and positions hold packed matrices, and
    nothing holds a dense copy beside them. `on_progress` is told how many bytes of how many are in their place.

    Raises: UnsupportedArchitecture; CheckpointError for a config that can't be served, for a model that no memory is
    there for, and for tensors that are missing, unexpected or of another shape; NativeLibraryError, if it packs.
    """
    assert packing is None or (device.type, dtype) == ("cpu", torch.float32)
    family = FAMILIES.get(checkpoint.architecture)
    if family is None:
        raise UnsupportedArchitecture(
            f"{checkpoint.path}: architecture {checkpoint.architecture!r} is not served; "
            f"served: {', '.join(sorted(FAMILIES))}"
        )
    architecture = _architecture(checkpoint, family)
    weight_map = family.weights(checkpoint.config, architecture)
    no_memory = f"{checkpoint.path}: no memory for a model of its config's sizes"
    with torch.device(device), _default_dtype(dtype), without_memory() if packing else nullcontext():
        try:
            model: nn.Module = family.build(checkpoint.config, architecture, device)
        except RuntimeError as error:  # torch has no narrower one for a CPU that is out of memory
            raise CheckpointError(f"{no_memory}: {error}") from error
    places = packed_places(model, packing, device) if packing else dense_places(model)
    try:
        _fill(places, checkpoint, weight_map, on_progress)
    except MemoryError as error:
        raise CheckpointError(f"{no_memory}: {error}") from error
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


def _fill(
    places: dict[str, Place],
    checkpoint: Checkpoint,
    weight_map: WeightMap,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Brings every tensor into its place, and proves that each place was filled once. Mutates: `places`, the model."""
    unexpected = []
    sizes = {name: checkpoint.num_bytes(name) for name in sorted(checkpoint.names())}
    num_done, num_all = 0, sum(sizes.values())
    for name, num_bytes in sizes.items():
        target = weight_map.target(name)
        place = places.pop(target.place, None) if target else None
        if target is not None and place is not None:
            # A fused tensor fills the segments of its Linear all at once, or they fill it one by one.
            for other in [key for key in places if key.startswith(f"{target.place}[")]:
                del places[other]
            places.pop(target.parameter, None)
            _check_shape(place, checkpoint, name, target)
            place.fill(checkpoint, name, is_transposed=target.is_transposed)
            checkpoint.release()
        elif not weight_map.is_ignored(name):
            unexpected.append(name)
        num_done += num_bytes
        if on_progress is not None:
            on_progress(num_done, num_all)
    if unexpected:
        raise CheckpointError(f"{checkpoint.path}: unexpected tensors: {_listed(unexpected)}")
    if places:
        raise CheckpointError(f"{checkpoint.path}: no tensor in the checkpoint fills {_listed(list(places))}")


def _check_shape(place: Place, checkpoint: Checkpoint, name: str, target: Target) -> None:
    shape = checkpoint.shape(name)
    expected = tuple(reversed(place.shape)) if target.is_transposed else place.shape
    if shape != expected:
        raise CheckpointError(
            f"{checkpoint.path}: {name} has shape {list(shape)}, the config asks for {list(expected)}"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
