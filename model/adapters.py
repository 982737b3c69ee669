"""Adapters: what a task adds to a shared encoder, low-rank factors for its Linears and a head of its own.

On disk an adapter is a folder: `adapter.json` says what it is, `adapter.safetensors` holds the factors
(`<path>.down [R, I]`, `<path>.up [O, R]`, the scale folded in) and the head (`head.*`).
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.embeddings import Embedding
from model.encoder import EncoderModel
from model.errors import CheckpointError
from model.heads import MaskedLanguageModel, SequenceClassifier, SpanExtractor
from model.linear import Linear, LowRankAdapters
from model.normalization import LayerNorm

# What an adapter's description says when it names no task.
_FIRST_TASK = "classify"
_TIED = "decoder.weight"


@dataclass(frozen=True)
class Adapter:
    """One task's change of an encoder. Shape of the factors: down `[R, I]`, up `[O, R]`, by path of the Linear.

    Labels are a classifier's. The head has no table of tokens: what scores them is the encoder's own.
    """

    name: str
    labels: tuple[str, ...]
    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    task: str = _FIRST_TASK

    @classmethod
    def load(cls, folder: Path) -> "Adapter":
        """Raises: CheckpointError for a folder that lacks a file or holds a broken one."""
        try:
            description = json.loads((folder / "adapter.json").read_text("utf-8"))
            tensors = load_file(folder / "adapter.safetensors")
            name, task = description["name"], description.get("task", _FIRST_TASK)
            labels = description["labels"] if task == _FIRST_TASK else description.get("labels", [])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: not an adapter: {error}") from error
        if not isinstance(labels, list) or not all(isinstance(text, str) for text in (name, task, *labels)):
            raise CheckpointError(f"{folder}: not an adapter: name, task and labels are texts")

        def ending(suffix: str) -> dict[str, Tensor]:
            return {name.removesuffix(suffix): tensor for name, tensor in tensors.items() if name.endswith(suffix)}

        head = {name.removeprefix("head."): tensor for name, tensor in tensors.items() if name.startswith("head.")}
        down, up = ending(".down"), ending(".up")
        if down.keys() != up.keys():
            raise CheckpointError(f"{folder}: factors without their counterpart: {sorted(down.keys() ^ up.keys())}")
        return cls(name, tuple(labels), down, up, head, task)

    def save(self, folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        description = {"name": self.name, "task": self.task, "labels": list(self.labels)}
        (folder / "adapter.json").write_text(json.dumps(description, indent=2) + "\n", "utf-8")
        tensors = {f"{path}.down": tensor for path, tensor in self.down.items()}
        tensors |= {f"{path}.up": tensor for path, tensor in self.up.items()}
        tensors |= {f"head.{name}": tensor for name, tensor in self.head.items()}
        save_file(
            {name: t.detach().to(dtype).contiguous() for name, t in tensors.items()}, folder / "adapter.safetensors"
        )


def attach(model: EncoderModel, adapters: Sequence[Adapter]) -> list[nn.Module]:
    """Gives an encoder its adapters, numbered from 1 in this order, and returns their heads.

    Mutates: `model`. Raises: CheckpointError for an adapter of another model, or of a task that adapters don't have.
    """
    give_factors(model.encoder, adapters)
    return [_head(model, adapter) for adapter in adapters]


def give_factors(body: nn.Module, adapters: Sequence[Adapter]) -> None:
    """Mutates: the Linears of an encoder or decoder. Raises: CheckpointError for an adapter of another model."""
    linears = linears_of(body)
    for adapter in adapters:
        if unknown := sorted(adapter.down.keys() - linears.keys()):
            raise CheckpointError(f"adapter {adapter.name!r} is for another model: there is no {unknown[0]}")
    for path, module in linears.items():
        if any(path in adapter.down for adapter in adapters):
            module.adapters = _stack(path, module, adapters)


def linears_of(body: nn.Module) -> dict[str, Linear]:
    """The products of an encoder or decoder that an adapter may change, by their paths."""
    return {path: module for path, module in body.named_modules() if isinstance(module, Linear)}


def _stack(path: str, module: Linear, adapters: Sequence[Adapter]) -> LowRankAdapters:
    """The factors of all adapters for one Linear; a lower rank, or none, is filled up with zeros."""
    rank = max(adapter.down[path].shape[0] for adapter in adapters if path in adapter.down)
    out_width, in_width = module.out_width, module.in_width
    down_ARI = torch.zeros(len(adapters), rank, in_width, dtype=module.dtype, device=module.device)
    up_AOR = torch.zeros(len(adapters), out_width, rank, dtype=module.dtype, device=module.device)
    for a, adapter in enumerate(adapters):
        if path not in adapter.down:
            continue
        down_RI, up_OR = adapter.down[path], adapter.up[path]
        if down_RI.shape[1] != in_width or up_OR.shape[0] != out_width or down_RI.shape[0] != up_OR.shape[1]:
            raise CheckpointError(f"adapter {adapter.name!r} is for another model: {path} has other widths")
        down_ARI[a, : len(down_RI)] = down_RI
        up_AOR[a, :, : len(down_RI)] = up_OR
    return LowRankAdapters(down_ARI, up_AOR)


def _head(model: EncoderModel, adapter: Adapter) -> nn.Module:
    weight = next(model.parameters())
    head = empty_head(model, adapter.task, adapter.labels, name=adapter.name).to(weight.device, weight.dtype)
    # The token table is the encoder's: it is neither read from the adapter nor written.
    shapes = {name: tensor.shape for name, tensor in head.state_dict().items() if name != _TIED}
    found = {name: tensor.shape for name, tensor in adapter.head.items()}
    if found != shapes:
        wrong = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
        raise CheckpointError(f"adapter {adapter.name!r} has a head of another shape: {', '.join(wrong)}")
    head.load_state_dict(dict(adapter.head), strict=False)
    return head.eval().requires_grad_(False)


def empty_head(model: EncoderModel, task: str, labels: Sequence[str], *, name: str) -> nn.Module:
    """A task's head over an encoder, with no values in it but the encoder's own.

    Raises: CheckpointError for a task that adapters don't have.
    """
    width = model.config.width
    match task:
        case "classify":
            return SequenceClassifier(width, len(labels))
        case "fill-mask":
            tokens = model.encoder.embeddings.tokens
            assert isinstance(tokens, Embedding)
            return MaskedLanguageModel(width, "gelu", LayerNorm(tokens.width, 1e-12), tokens)
        case "question-answering":
            return SpanExtractor(width)
    known = "classify, fill-mask, question-answering"
    raise CheckpointError(f"adapter {name!r} is for the task {task!r}; adapters are for {known}")


def blank(
    name: str,
    labels: Sequence[str],
    model: EncoderModel,
    *,
    rank: int,
    seed: int,
    task: str = _FIRST_TASK,
    paths: Collection[str] | None = None,
) -> Adapter:
    """An adapter that changes nothing yet: random `down`, zero `up`, a small random head. Float32.

    `paths` are the Linears that it may change; all, unless they are named.
    """
    generator = torch.Generator().manual_seed(seed)
    down, up = blank_factors(model.encoder, rank, generator, paths)
    head = {}
    for path, tensor in empty_head(model, task, labels, name=name).state_dict().items():
        if tensor.dim() == 2 and path != _TIED:
            head[path] = torch.randn(tensor.shape, generator=generator) * tensor.shape[1] ** -0.5
        elif path != _TIED:
            head[path] = torch.ones(tensor.shape) if path == "norm.weight" else torch.zeros(tensor.shape)
    return Adapter(name, tuple(labels), down, up, head, task)


def blank_factors(
    body: nn.Module, rank: int, generator: torch.Generator, paths: Collection[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random `down` and zero `up` for the Linears of an encoder or decoder: all, or those that are named."""
    down, up = {}, {}
    for path, module in linears_of(body).items():
        if paths is None or path in paths:
            down[path] = torch.randn(rank, module.in_width, generator=generator) * module.in_width**-0.5
            up[path] = torch.zeros(module.out_width, rank)
    return down, up


def detach(
    name: str, labels: Sequence[str], model: EncoderModel, head: nn.Module, *, task: str = _FIRST_TASK
) -> Adapter:
    """The one adapter that a model carries, as trained."""
    down, up = {}, {}
    for path, module in linears_of(model.encoder).items():
        if module.adapters is not None:
            down[path], up[path] = module.adapters.down[0], module.adapters.up[0]
    own = {path: tensor for path, tensor in head.state_dict().items() if path != _TIED}
    return Adapter(name, tuple(labels), down, up, own, task)
