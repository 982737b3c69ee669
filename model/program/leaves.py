"""The leaves: the modules that compute, and the shape of what each gives. All else composes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from model.attention import Attend, Store
from model.convolution import Convolution
from model.disentangled import DisentangledAttend, PositionTable, ProjectPositions
from model.embeddings import Embedding
from model.feed_forward import Activation, Gate
from model.heads import FirstToken, MeanToken, Normalize, Pooling, TakeRows, Widen
from model.linear import Linear
from model.normalization import LayerNorm, RMSNorm
from model.program.operation import Rows
from model.relative import RelativeBias
from model.rotary import Rotary


@dataclass(frozen=True, slots=True)
class Leaf:
    """What comes out: the width, from the module and the width of what it reads; None where nothing does.

    It has as many rows as the first thing that the leaf reads, unless `rows` says otherwise.
    """

    width: Callable[[Any, int], int] | None
    rows: Rows | None = None


def _same(_: nn.Module, width: int) -> int:
    return width


_LEAVES: Mapping[type[nn.Module], Leaf] = {
    Embedding: Leaf(lambda table, _: table.width),
    Linear: Leaf(lambda linear, _: linear.out_width),
    LayerNorm: Leaf(_same),
    RMSNorm: Leaf(_same),
    Rotary: Leaf(_same),
    Attend: Leaf(lambda attend, _: attend.spec.row_widths[0]),
    Store: Leaf(None),
    Gate: Leaf(lambda _, width: width // 2),
    Activation: Leaf(_same),
    Convolution: Leaf(_same),
    # A row a head, counted here as a number a head for each distance.
    RelativeBias: Leaf(lambda bias, _: bias.weight.shape[1], "J"),
    PositionTable: Leaf(lambda table, _: table.weight.shape[1], "J"),
    ProjectPositions: Leaf(lambda project, _: len(project.terms) * next(iter(project.source.segments.values()))),
    DisentangledAttend: Leaf(lambda attend, _: attend.spec.row_widths[0]),
    TakeRows: Leaf(_same, "L"),
    FirstToken: Leaf(_same, "S"),
    MeanToken: Leaf(_same, "S"),
    Pooling: Leaf(lambda pooling, width: width * len(pooling.modes), "S"),
    Normalize: Leaf(_same),
    Widen: Leaf(_same),
}


def leaf_of(module: nn.Module) -> Leaf | None:
    """None for a module that composes others."""
    return next((_LEAVES[kind] for kind in type(module).__mro__ if kind in _LEAVES), None)
