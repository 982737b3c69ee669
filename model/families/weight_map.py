"""Where each tensor of a checkpoint goes.

A map has an entry a layer of the checkpoint, textbook name to ours, without the suffix (.weight, .bias):
`"layers.{i}.self_attn.q_proj": "decoder.blocks.{i}.attention.project_in[query]"`. Brackets name a row segment of a
Linear; `{i}` stands for any layer number.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

_SUFFIXES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


@dataclass(frozen=True, slots=True)
class Target:
    """A parameter of the model, one of its row segments, and whether the checkpoint holds it transposed."""

    parameter: str
    segment: str
    is_transposed: bool

    @property
    def place(self) -> str:
        return f"{self.parameter}[{self.segment}]" if self.segment else self.parameter


@dataclass(frozen=True)
class WeightMap:
    """`optional_prefix` is what some exports put before every name (`bert.`); `ignored` are names without a use here.

    `transposed` lists the entries whose matrix is stored input first (GPT-2's Conv1D).
    """

    entries: Mapping[str, str]
    optional_prefix: str = ""
    ignored: tuple[str, ...] = ()
    transposed: frozenset[str] = frozenset()

    def target(self, name: str) -> Target | None:
        """The place of a checkpoint's tensor; None for a name that is not of this family."""
        stem, _, suffix = name.removeprefix(self.optional_prefix).rpartition(".")
        layer = re.search(r"\.(\d+)\.", stem)
        pattern = stem.replace(f".{layer[1]}.", ".{i}.", 1) if layer else stem
        if pattern not in self.entries or suffix not in _SUFFIXES:
            return None
        path, _, segment = self.entries[pattern].rstrip("]").partition("[")
        path = path.replace("{i}", layer[1]) if layer else path
        is_transposed = pattern in self.transposed and suffix == "weight"
        return Target(f"{path}.{_SUFFIXES[suffix]}", segment, is_transposed)

    def is_ignored(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name.removeprefix(self.optional_prefix)) for pattern in self.ignored)

    def prefixed(self, source: str, ours: str) -> "WeightMap":
        """The same family as a part of something larger: names below `source`, parameters below `ours`."""
        return replace(
            self,
            entries={f"{source}{name}": f"{ours}{path}" for name, path in self.entries.items()},
            optional_prefix="",
            ignored=tuple(re.escape(source) + pattern for pattern in self.ignored),
            transposed=frozenset(f"{source}{name}" for name in self.transposed),
        )
