"""How a checkpoint pools its tokens into one vector: what sentence-transformers' files say, the mean without them.

`modules.json` lists the layers, the pooling's own `config.json` has a switch for each kind.
"""

import json
from pathlib import Path
from typing import Literal

_SERVED_LAYERS = {"Transformer", "Pooling", "Normalize"}


class UnknownPooling(Exception):
    """The checkpoint's vectors come about in a way that is not served."""


def pooling_mode(folder: Path) -> Literal["mean", "cls"]:
    """Raises: UnknownPooling for another kind of pooling, a layer after it, or files that can't be read."""
    try:
        path = _config_path(folder)
        if path is None:
            return "mean"
        config = json.loads(path.read_text("utf-8"))
        modes = {key.removeprefix("pooling_mode_") for key, value in config.items() if value is True}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UnknownPooling(f"{folder}: its kind of pooling can't be read: {error}") from error
    modes.discard("include_prompt")
    if modes == {"mean_tokens"}:
        return "mean"
    if modes == {"cls_token"}:
        return "cls"
    raise UnknownPooling(f"{path}: pooling by {', '.join(sorted(modes)) or 'nothing'} is not served")


def _config_path(folder: Path) -> Path | None:
    """Without modules.json, the folder's usual name; None where there is no pooling at all."""
    listed = folder / "modules.json"
    if not listed.exists():
        usual = folder / "1_Pooling" / "config.json"
        return usual if usual.exists() else None
    paths = {module["type"].rpartition(".")[2]: module["path"] for module in json.loads(listed.read_text("utf-8"))}
    if others := sorted(paths.keys() - _SERVED_LAYERS):
        raise UnknownPooling(f"{listed}: the layer {', '.join(others)} is not served")
    return folder / paths["Pooling"] / "config.json" if "Pooling" in paths else None
