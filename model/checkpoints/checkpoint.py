"""What a checkpoint is, whatever its format: a config, tensors under textbook names, a tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from model.kernels.native.matrix import Source
from model.tokenizer import Tokenizer


class Checkpoint(Protocol):
    """Names, layouts and config keys are Hugging Face's, also when the file is of another format."""

    path: Path
    architecture: str
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]

    @property
    def chat_template(self) -> str | None: ...

    @property
    def digest(self) -> str:
        """sha256 of the weights."""
        ...

    @property
    def weight_type(self) -> str:
        """The type that most weights are stored in: float32, bfloat16, Q4_1, ..."""
        ...

    @property
    def unpacked_types(self) -> tuple[str, ...]:
        """The types of its matrices that have no packed form of their own: `source` gives them as plain numbers."""
        ...

    def names(self) -> frozenset[str]:
        """Every tensor."""
        ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def num_bytes(self, name: str) -> int:
        """What one tensor takes in the file."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor, in a float dtype. Raises: CheckpointError for bytes that are not there."""
        ...

    def source(self, name: str) -> Source:
        """One matrix as it is stored, to be packed. Raises: CheckpointError for bytes that are not there."""
        ...

    def release(self) -> None:
        """Lets go of what was read of a mapped file: whoever asks again reads it again."""
        ...

    def tokenizer(self) -> Tokenizer:
        """Raises: CheckpointError when there is none, or one that is not understood."""
        ...
