"""Which layers a checkpoint's files ask for: older and newer ones of sentence-transformers."""

import json
from pathlib import Path

import pytest

from services.encoder.tasks.pooling import DenseLayer, NormalizeLayer, UnknownPooling, VectorLayers

MEAN = {"word_embedding_dimension": 384, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "include_prompt": True}
DENSE = {"in_features": 8, "out_features": 4, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
NORMALIZE = (NormalizeLayer(),)


def layers(*kinds: str, types: str = "sentence_transformers.models.{}") -> list[dict[str, object]]:
    places = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    return [
        {"idx": i, "name": str(i), "path": place, "type": types.format(kind)}
        for i, (place, kind) in enumerate(zip(places, kinds, strict=True))
    ]


def checkpoint(folder: Path, modules: object, **configs: object) -> Path:
    """`configs` by folder, a leading underscore left out: `_1_Pooling={...}`."""
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules))
    for name, config in configs.items():
        (folder / name[1:]).mkdir()
        (folder / name[1:] / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("modules", "pooling", "modes", "behind"),
    [
        (None, None, ("mean",), NORMALIZE),
        (None, MEAN, ("mean",), NORMALIZE),
        (None, CLS, ("cls",), NORMALIZE),
        (layers("Transformer", "Pooling"), MEAN, ("mean",), ()),
        (layers("Transformer", "Pooling", "Normalize"), CLS, ("cls",), NORMALIZE),
        (layers("Transformer"), None, ("mean",), NORMALIZE),
        (layers("Transformer", "Pooling"), {"word_embedding_dimension": 8}, ("mean",), ()),
        (layers("Transformer", "Pooling"), {"pooling_mode_mean_tokens": False}, ("mean",), ()),
        (layers("Transformer", "Pooling"), {"embedding_dimension": 8, "pooling_mode": "max"}, ("max",), ()),
        (layers("Transformer", "Pooling"), {"pooling_mode": ["mean", "cls"]}, ("mean", "cls"), ()),
        # Where the newer key stands, the switches of older versions are not read.
        (layers("Transformer", "Pooling"), {**CLS, "pooling_mode": "max"}, ("max",), ()),
        # Several switches stand in an order of their own, whatever the file's is.
        (
            layers("Transformer", "Pooling"),
            {f"pooling_mode_{kind}": True for kind in ("lasttoken", "weightedmean_tokens", "mean_sqrt_len_tokens")}
            | {f"pooling_mode_{kind}": True for kind in ("mean_tokens", "max_tokens", "cls_token")},
            ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"),
            (),
        ),
    ],
)
def test_served(tmp_path: Path, modules: object, pooling: object, modes: object, behind: object) -> None:
    folder = checkpoint(tmp_path, modules, **({} if pooling is None else {"_1_Pooling": pooling}))
    assert VectorLayers.of_checkpoint(folder) == VectorLayers(modes, behind)


def test_the_list_of_layers_says_where_the_pooling_is(tmp_path: Path) -> None:
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "elsewhere", "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"},
    ]
    assert VectorLayers.of_checkpoint(checkpoint(tmp_path, modules, _elsewhere=CLS)).modes == ("cls",)


def test_layers_behind_the_pooling_in_order(tmp_path: Path) -> None:
    modules = layers("Transformer", "Pooling", "Normalize", "Dense", "Dense")
    plain = {
        "in_features": 4,
        "out_features": 2,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    folder = checkpoint(tmp_path, modules, _1_Pooling=MEAN, _3_Dense=DENSE, _4_Dense={**plain, "use_residual": False})
    assert VectorLayers.of_checkpoint(folder).behind == (
        NormalizeLayer(),
        DenseLayer(tmp_path / "3_Dense", 8, 4, True, "tanh"),
        DenseLayer(tmp_path / "4_Dense", 4, 2, False, None),
    )


@pytest.mark.parametrize("is_lower_cased", [True, False])
def test_texts_that_are_to_be_lower_cased(tmp_path: Path, is_lower_cased: bool) -> None:
    folder = checkpoint(tmp_path, layers("Transformer", "Pooling"), _1_Pooling=MEAN)
    config = {"max_seq_length": 128, "do_lower_case": is_lower_cased}
    (folder / "sentence_roberta_config.json").write_text(json.dumps(config))
    assert VectorLayers.of_checkpoint(folder).is_lower_cased == is_lower_cased


DENSE_BEHIND = layers("Transformer", "Pooling", "Dense")


@pytest.mark.parametrize(
    ("modules", "configs", "message"),
    [
        (None, {"_1_Pooling": {"pooling_mode_attention": True}}, "pooling by attention is not served"),
        (None, {"_1_Pooling": {"pooling_mode": "attention"}}, "pooling by attention is not served"),
        (None, {"_1_Pooling": {"pooling_mode": ["mean", "attention"]}}, "pooling by attention is not served"),
        (None, {"_1_Pooling": {"pooling_mode": []}}, "pooling by nothing is not served"),
        (None, {"_1_Pooling": []}, "can't be read"),
        (layers("Transformer", "Pooling"), {}, "can't be read"),
        ([{"path": ""}], {}, "can't be read"),
        ({"Pooling": "1_Pooling"}, {}, "can't be read"),
        (layers("Transformer", "Pooling", "LSTM"), {"_1_Pooling": MEAN}, "the layer .*models.LSTM is not served"),
        (layers("Transformer", "Pooling", types="mine.{}"), {}, "the layer mine.Transformer is not served"),
        (layers("Transformer", "Dense", "Pooling"), {}, "Transformer, Dense, Pooling are not served in this order"),
        (layers("Pooling"), {}, "the layers Pooling are not served in this order"),
        ([], {}, "not served in this order"),
        (layers("Transformer", "Pooling", "Pooling"), {"_1_Pooling": MEAN}, "the layer Pooling is not served"),
        (
            [{"path": "0_BERT", "type": "sentence_transformers.models.Transformer"}],
            {},
            "a transformer in a folder of its own is not served",
        ),
        (
            [*layers("Transformer"), {"path": "../1_Pooling", "type": "sentence_transformers.models.Pooling"}],
            {},
            "'../1_Pooling' is not the name of a folder",
        ),
        (
            DENSE_BEHIND,
            {"_1_Pooling": MEAN, "_2_Dense": {**DENSE, "activation_function": "torch.nn.modules.activation.Mish"}},
            "the activation torch.nn.modules.activation.Mish is not served",
        ),
        (
            DENSE_BEHIND,
            {"_1_Pooling": MEAN, "_2_Dense": {**DENSE, "activation_function": "mine.Tanh"}},
            "the activation mine.Tanh is not served",
        ),
        (DENSE_BEHIND, {"_1_Pooling": MEAN, "_2_Dense": {**DENSE, "use_residual": True}}, "use_residual True is not"),
        (
            DENSE_BEHIND,
            {"_1_Pooling": MEAN, "_2_Dense": {**DENSE, "module_output_name": "scores"}},
            "module_output_name 'scores' is not served",
        ),
        (DENSE_BEHIND, {"_1_Pooling": MEAN, "_2_Dense": {"in_features": 8}}, "can't be read"),
    ],
)
def test_refused(tmp_path: Path, modules: object, configs: dict[str, object], message: str) -> None:
    with pytest.raises(UnknownPooling, match=message):
        VectorLayers.of_checkpoint(checkpoint(tmp_path, modules, **configs))


def test_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[" * 100_000)
    with pytest.raises(UnknownPooling, match="can't be read"):
        VectorLayers.of_checkpoint(tmp_path)
