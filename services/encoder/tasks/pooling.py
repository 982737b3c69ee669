"""How a checkpoint makes one vector of its tokens: what sentence-transformers' files say, else the normalised mean.

`modules.json` lists the layers in order; the pooling's own config.json names its modes, in older files with a switch
for each. Two things in these files are not followed: their limit of tokens, since the model's positions decide, and
their prompts, which are the caller's to write before a text.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

PoolingMode: TypeAlias = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]

# In the order in which the vectors of several switches stand side by side.
_SWITCHES: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# torch's classes, and the names that config.json files have for them.
_ACTIVATIONS = {"Identity": None, "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu"}
_INPUT = "sentence_embedding"


class UnknownPooling(Exception):
    """The checkpoint's vectors come about in a way that is not served."""


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A linear layer and an activation; its weights are in its folder."""

    folder: Path
    in_width: int
    out_width: int
    has_bias: bool
    activation: str | None


@dataclass(frozen=True, slots=True)
class NormalizeLayer:
    """Length 1."""


@dataclass(frozen=True, slots=True)
class VectorLayers:
    """Modes of pooling, their vectors side by side, and the layers behind; whether texts are lower-cased first."""

    modes: tuple[PoolingMode, ...]
    behind: tuple[DenseLayer | NormalizeLayer, ...]
    is_lower_cased: bool = False

    @classmethod
    def of_checkpoint(cls, folder: Path) -> "VectorLayers":
        """Raises: UnknownPooling with the name of what is not served, or for files that can't be read."""
        try:
            return _read(folder)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UnknownPooling(f"{folder}: its kind of pooling can't be read: {error!r}") from error


def _read(folder: Path) -> VectorLayers:
    listed = folder / "modules.json"
    if not listed.exists():
        usual = folder / "1_Pooling"
        modes = _modes(usual) if (usual / "config.json").exists() else ("mean",)
        return VectorLayers(modes, (NormalizeLayer(),))
    layers = [(_kind(listed, layer["type"]), _folder(listed, layer["path"])) for layer in _json(listed)]
    if layers and layers[0][1] != folder:
        raise UnknownPooling(f"{listed}: a transformer in a folder of its own is not served")
    match layers:
        case [("Transformer", _)]:  # a cross-encoder's list: nothing is said of vectors
            return VectorLayers(("mean",), (NormalizeLayer(),))
        case [("Transformer", _), ("Pooling", pooling), *behind]:
            is_lower_cased = any(_json(path).get("do_lower_case") for path in folder.glob("sentence_*_config.json"))
            return VectorLayers(_modes(pooling), tuple(_behind(kind, path) for kind, path in behind), is_lower_cased)
    raise UnknownPooling(f"{listed}: the layers {', '.join(kind for kind, _ in layers)} are not served in this order")


def _kind(listed: Path, type_name: str) -> str:
    """The class of a layer, which moved between modules more than once."""
    kind = type_name.rpartition(".")[2]
    if type_name.startswith("sentence_transformers.") and kind in ("Transformer", "Pooling", "Dense", "Normalize"):
        return kind
    raise UnknownPooling(f"{listed}: the layer {type_name} is not served")


def _folder(listed: Path, name: str) -> Path:
    """A folder beside the list, never a path that leads elsewhere; the transformer itself has none."""
    if name and Path(name).name != name:
        raise UnknownPooling(f"{listed}: {name!r} is not the name of a folder")
    return listed.parent / name


def _modes(folder: Path) -> tuple[PoolingMode, ...]:
    path = folder / "config.json"
    config = _json(path)
    named = config.get("pooling_mode")
    modes: list[Any]
    if named is None:
        switches = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        others = [key for key in switches if key not in _SWITCHES]
        modes = [mode for key, mode in _SWITCHES.items() if key in switches] or ["mean"]
    else:
        modes = [named] if isinstance(named, str) else list(named)
        others = [mode for mode in modes if mode not in get_args(PoolingMode)]
    if others or not modes:
        names = ", ".join(str(other).removeprefix("pooling_mode_") for other in others)
        raise UnknownPooling(f"{path}: pooling by {names or 'nothing'} is not served")
    return tuple(modes)


def _behind(kind: str, folder: Path) -> DenseLayer | NormalizeLayer:
    path = folder / "config.json"
    match kind:
        case "Normalize":
            config = _json(path) if path.exists() else {}
            _require_default(path, config, module_input_name=_INPUT, module_output_name=_INPUT)
            return NormalizeLayer()
        case "Dense":
            config = _json(path)
            _require_default(path, config, module_input_name=_INPUT, module_output_name=_INPUT, use_residual=False)
            return DenseLayer(
                folder,
                int(config["in_features"]),
                int(config["out_features"]),
                bool(config.get("bias", True)),
                _activation(path, config.get("activation_function", "torch.nn.modules.activation.Tanh")),
            )
    raise UnknownPooling(f"{folder}: the layer {kind} is not served behind another pooling")


def _require_default(path: Path, config: Mapping[str, Any], **defaults: Any) -> None:
    for key, default in defaults.items():
        if config.get(key) not in (None, default):
            raise UnknownPooling(f"{path}: {key} {config[key]!r} is not served")


def _activation(path: Path, name: str) -> str | None:
    kind = name.rpartition(".")[2]
    if not name.startswith("torch.") or kind not in _ACTIVATIONS:
        raise UnknownPooling(f"{path}: the activation {name} is not served")
    return _ACTIVATIONS[kind]


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
