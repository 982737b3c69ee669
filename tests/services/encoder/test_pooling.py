"""Which pooling a checkpoint's files ask for."""

import json
from pathlib import Path

import pytest

from services.encoder.tasks.pooling import UnknownPooling, pooling_mode

MEAN = {"word_embedding_dimension": 384, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "include_prompt": True}


def layers(*kinds: str) -> list[dict[str, object]]:
    return [{"idx": i, "path": f"{i}_{k}", "type": f"sentence_transformers.models.{k}"} for i, k in enumerate(kinds)]


def checkpoint(folder: Path, modules: object, config: object, where: str = "1_Pooling") -> Path:
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules))
    if config is not None:
        (folder / where).mkdir()
        (folder / where / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("modules", "config", "mode"),
    [
        (None, None, "mean"),
        (None, MEAN, "mean"),
        (None, CLS, "cls"),
        (layers("Transformer", "Pooling", "Normalize"), CLS, "cls"),
        (layers("Transformer"), None, "mean"),
    ],
)
def test_served(tmp_path: Path, modules: object, config: object, mode: str) -> None:
    assert pooling_mode(checkpoint(tmp_path, modules, config)) == mode


def test_the_list_of_layers_says_where_the_pooling_is(tmp_path: Path) -> None:
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "elsewhere", "type": "sentence_transformers.models.Pooling"},
    ]
    assert pooling_mode(checkpoint(tmp_path, modules, CLS, "elsewhere")) == "cls"


@pytest.mark.parametrize(
    ("modules", "config", "message"),
    [
        (None, {"pooling_mode_max_tokens": True}, "pooling by max_tokens is not served"),
        (None, {**MEAN, "pooling_mode_cls_token": True}, "pooling by cls_token, mean_tokens is not served"),
        (None, {}, "pooling by nothing is not served"),
        (None, [], "can't be read"),
        (layers("Transformer", "Pooling", "Dense"), MEAN, "the layer Dense is not served"),
        (layers("Transformer", "Pooling"), None, "can't be read"),
        ([{"path": ""}], MEAN, "can't be read"),
        ({"Pooling": "1_Pooling"}, MEAN, "can't be read"),
    ],
)
def test_refused(tmp_path: Path, modules: object, config: object, message: str) -> None:
    with pytest.raises(UnknownPooling, match=message):
        pooling_mode(checkpoint(tmp_path, modules, config))
