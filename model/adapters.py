"""Adapters: what a task adds to a shared encoder, low-rank factors for its Linears and a head of its own.

On disk an adapter is a folder: `adapter.json` says what it is, `adapter.safetensors` holds the factors
(`<path>.down [R, I]`, `<path>.up [O, R]`, the scale folded in) and the head (`head.*`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.encoder import EncoderModel
from model.errors import CheckpointError
from model.heads import SequenceClassifier
from model.linear import Linear, LowRankAdapters


@dataclass(frozen=True)
class Adapter:
    """One task's change of an encoder. Shape of the factors: down `[R, I]`, up `[O, R]`, by path of the Linear."""

    name: str
    labels: tuple[str, ...]
    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]
    head: Mapping[str, Tensor]

    @classmethod
    def load(cls, folder: Path) -> "Adapter":
        """Raises: CheckpointError for a folder that lacks a file or holds a broken one."""
        try:
            description = json.loads((folder / "adapter.json").read_text("utf-8"))
            tensors = load_file(folder / "adapter.safetensors")
            name, labels = description["name"], tuple(description["labels"])
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: not an adapter: {error}") from error

        def ending(suffix: str) -> dict[str, Tensor]:
            return {name.removesuffix(suffix): tensor for name, tensor in tensors.items() if name.endswith(suffix)}

        head = {name.removeprefix("head."): tensor for name, tensor in tensors.items() if name.startswith("head.")}
        down, up = ending(".down"), ending(".up")
        if down.keys() != up.keys():
            raise CheckpointError(f"{folder}: factors without their counterpart: {sorted(down.keys() ^ up.keys())}")
        return cls(name, labels, down, up, head)

    def save(self, folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        description = {"name": self.name, "labels": list(self.labels)}
        (folder / "adapter.json").write_text(json.dumps(description, indent=2) + "\n", "utf-8")
        tensors = {f"{path}.down": tensor for path, tensor in self.down.items()}
        tensors |= {f"{path}.up": tensor for path, tensor in self.up.items()}
        tensors |= {f"head.{name}": tensor for name, tensor in self.head.items()}
        save_file(
            {name: t.detach().to(dtype).contiguous() for name, t in tensors.items()}, folder / "adapter.safetensors"
        )


def attach(model: EncoderModel, adapters: Sequence[Adapter]) -> list[SequenceClassifier]:
    """Gives an encoder its adapters, numbered from 1 in this order, and returns their heads.

    Mutates: `model`. Raises: CheckpointError for an adapter of another model.
    """
    linears = {path: module for path, module in model.encoder.named_modules() if isinstance(module, Linear)}
    for adapter in adapters:
        if unknown := sorted(adapter.down.keys() - linears.keys()):
            raise CheckpointError(f"adapter {adapter.name!r} is for another model: there is no {unknown[0]}")
    for path, module in linears.items():
        if any(path in adapter.down for adapter in adapters):
            module.adapters = _stack(path, module, adapters)
    return [_head(model, adapter) for adapter in adapters]


def _stack(path: str, module: Linear, adapters: Sequence[Adapter]) -> LowRankAdapters:
    """The factors of all adapters for one Linear; a lower rank, or none, is filled up with zeros."""
    rank = max(adapter.down[path].shape[0] for adapter in adapters if path in adapter.down)
    out_width, in_width = module.weight.shape
    down_ARI = module.weight.new_zeros(len(adapters), rank, in_width)
    up_AOR = module.weight.new_zeros(len(adapters), out_width, rank)
    for a, adapter in enumerate(adapters):
        if path not in adapter.down:
            continue
        down_RI, up_OR = adapter.down[path], adapter.up[path]
        if down_RI.shape[1] != in_width or up_OR.shape[0] != out_width or down_RI.shape[0] != up_OR.shape[1]:
            raise CheckpointError(f"adapter {adapter.name!r} is for another model: {path} has other widths")
        down_ARI[a, : len(down_RI)] = down_RI
        up_AOR[a, :, : len(down_RI)] = up_OR
    return LowRankAdapters(down_ARI, up_AOR)


def _head(model: EncoderModel, adapter: Adapter) -> SequenceClassifier:
    weight = next(model.parameters())
    head = SequenceClassifier(model.config.width, len(adapter.labels)).to(weight.device, weight.dtype)
    try:
        head.load_state_dict(dict(adapter.head))
    except RuntimeError as error:
        raise CheckpointError(f"adapter {adapter.name!r} has a head of another shape: {error}") from error
    return head.eval().requires_grad_(False)


def blank(name: str, labels: Sequence[str], model: EncoderModel, *, rank: int, seed: int) -> Adapter:
    """An adapter that changes nothing yet: random `down`, zero `up`, a small random head. Float32."""
    generator = torch.Generator().manual_seed(seed)
    width = model.config.width
    down, up = {}, {}
    for path, module in model.encoder.named_modules():
        if isinstance(module, Linear):
            out_width, in_width = module.weight.shape
            down[path] = torch.randn(rank, in_width, generator=generator) * in_width**-0.5
            up[path] = torch.zeros(out_width, rank)

    def head_weight(rows: int) -> Tensor:
        return torch.randn(rows, width, generator=generator) * width**-0.5

    head = {
        "pooler.weight": head_weight(width),
        "pooler.bias": torch.zeros(width),
        "classifier.weight": head_weight(len(labels)),
        "classifier.bias": torch.zeros(len(labels)),
    }
    return Adapter(name, tuple(labels), down, up, head)


def detach(name: str, labels: Sequence[str], model: EncoderModel, head: nn.Module) -> Adapter:
    """The one adapter that a model carries, as trained."""
    down, up = {}, {}
    for path, module in model.encoder.named_modules():
        if isinstance(module, Linear) and module.adapters is not None:
            down[path], up[path] = module.adapters.down[0], module.adapters.up[0]
    return Adapter(name, tuple(labels), down, up, head.state_dict())
