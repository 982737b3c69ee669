"""A recipe: everything that a training run depends on, in one TOML file."""

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Recipe:
    """Paths are relative to the recipe's folder; `base` may be given on the command line instead."""

    name: str
    data: Path
    output: Path
    labels: tuple[str, ...]
    rank: int
    num_epochs: int
    batch_tokens: int
    learning_rate: float
    weight_decay: float
    warmup_ratio: float
    dropout: float
    max_input_tokens: int
    validation_ratio: float
    sharpness: float
    seed: int

    @classmethod
    def read(cls, path: Path) -> "Recipe":
        """Raises: ValueError for a key that is missing or unknown."""
        values = tomllib.loads(path.read_text("utf-8"))
        known = set(cls.__slots__)
        if values.keys() != known:
            raise ValueError(
                f"{path}: missing {sorted(known - values.keys())}, unknown {sorted(values.keys() - known)}"
            )
        folder = path.resolve().parent
        paths = {key: folder / values[key] for key in ("data", "output")}
        return cls(**{**values, **paths, "labels": tuple(values["labels"])})
