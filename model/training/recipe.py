"""A recipe: everything that a training run depends on, in one TOML file."""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

SectionT = TypeVar("SectionT")


@dataclass(frozen=True, slots=True)
class Tuning:
    """What is trained beside the head: low-rank factors, or the weights themselves.

    A model whose every weight was trained becomes an adapter too: its difference, cut down to `rank`. `linears` are
    patterns of the paths that take part ("blocks.*.attention.*"). `start` is an adapter of the same task to go on from.
    What is kept is the mean of the run's changes and those of the adapters `averaged_with`, which other runs made: it
    often does better than any of them (Wortsman et al., 2022), and its rank is the sum of theirs.
    """

    method: Literal["lora", "full"]
    rank: int
    linears: tuple[str, ...] = ("*",)
    start: Path | None = None
    averaged_with: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Optimization:
    """AdamW and its course: the rate rises over the first `warmup_ratio` of the steps, then falls to zero.

    Units: `batch_tokens` tokens a pass, `num_accumulated` passes a step. A block's rate is `layer_decay` times that of
    the block above it. `dropout` works where BERT has it: behind each sublayer, and before the head. What counts in the
    end is the mean of the weights over the last `averaged_ratio` of the steps (Izmailov et al., 2018).
    """

    num_epochs: int
    batch_tokens: int
    learning_rate: float
    weight_decay: float
    warmup_ratio: float
    decay: Literal["linear", "cosine"] = "linear"
    layer_decay: float = 1.0
    max_gradient_norm: float = 1.0
    num_accumulated: int = 1
    dropout: float = 0.0
    averaged_ratio: float = 0.0
    precision: Literal["float32", "bf16"] = "float32"


@dataclass(frozen=True, slots=True)
class Validation:
    """What is kept aside, a file or a share of the first file of the data, and what is read off it.

    With `every_steps`, the weights that did best by `figure` are kept, and training ends when the figure has not
    improved `patience` times; a figure that begins with "-" is one that should be small ("-loss"). The figures of
    `further` files stand beside in the end, and decide nothing.
    """

    ratio: float = 0.0
    data: Path | None = None
    every_steps: int = 0
    figure: str = "-loss"
    patience: int = 0
    further: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """Paths are relative to the recipe's folder. `options` are the objective's own, which it checks itself."""

    name: str
    objective: str
    data: tuple[Path, ...]
    output: Path
    seed: int
    tuning: Tuning
    optimization: Optimization
    validation: Validation
    options: Mapping[str, Any]
    folder: Path

    @classmethod
    def read(cls, path: Path) -> "Recipe":
        """Raises: ValueError for a file that is no TOML, or a key that is missing, unknown or of another type."""
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: not a recipe: {error}") from error
        try:
            return cls._of(values, path.resolve().parent)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def _of(cls, values: Mapping[str, Any], folder: Path) -> "Recipe":
        if "folder" in values:
            raise ValueError("unknown: folder")
        sections: dict[str, type[Any]] = {"tuning": Tuning, "optimization": Optimization, "validation": Validation}
        made = {
            name: section(kind, values[name], folder=folder, name=name)
            for name, kind in sections.items()
            if name in values
        }
        return section(cls, {**values, **made, "folder": "."}, folder=folder)


def section(kind: type[SectionT], values: Any, *, folder: Path, name: str = "") -> SectionT:
    """A frozen dataclass from a table; fields without a default must be there.

    Raises: ValueError, with the keys that are missing or unknown, or the one that is of another type.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} is not a table")
    prefix = f"{name}." if name else ""
    known = {field.name: field.default is MISSING for field in fields(kind)}  # type: ignore[arg-type]
    missing = sorted(prefix + key for key, is_required in known.items() if is_required and key not in values)
    unknown = sorted(prefix + key for key in values.keys() - known.keys())
    if missing or unknown:
        raise ValueError(
            "; ".join(
                f"{what}: {', '.join(keys)}" for what, keys in (("missing", missing), ("unknown", unknown)) if keys
            )
        )
    hints = get_type_hints(kind)
    return kind(**{key: _value(value, hints[key], folder, prefix + key) for key, value in values.items()})


def _value(value: Any, hint: Any, folder: Path, key: str) -> Any:
    """Raises: ValueError for a value that is not of the type that the field has."""
    kind = get_origin(hint) or hint
    if kind is Literal and value in get_args(hint):
        return value
    if kind is Literal:
        raise ValueError(f"{key} is {value!r}, not one of {', '.join(map(str, get_args(hint)))}")
    if hint in (Path, Path | None) and isinstance(value, str):
        return folder / value
    if kind is tuple and isinstance(value, str | list):
        return tuple(
            _value(one, get_args(hint)[0], folder, key) for one in ([value] if isinstance(value, str) else value)
        )
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind is type(value) or (kind is Mapping and isinstance(value, Mapping)) or is_dataclass(value):
        return value
    raise ValueError(f"{key} is {value!r}, which is of another type")
