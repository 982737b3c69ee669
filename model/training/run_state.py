"""Where a run stands, on disk: so that one that was cut goes on as if it had not been."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def save_state(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Replaces the file as a whole, so that a run that is killed while it writes leaves the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}.new")
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, written, {"run": json.dumps(record)}
    )
    written.replace(path)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Raises: ValueError for a file that is no state of a run."""
    try:
        with safe_open(path, "pt") as opened:
            record = json.loads((opened.metadata() or {})["run"])
            return {name: opened.get_tensor(name) for name in opened.offset_keys()}, record
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path}: not the state of a run: {error}") from error
