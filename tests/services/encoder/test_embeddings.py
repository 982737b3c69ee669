"""Vectors over gRPC equal sentence-transformers' to 1e-5: each family, each mode, layers behind the pooling."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
import real_tokenizers
import safetensors.torch
import torch
from encoder_house import MINILM, runner, worker
from nasty_texts import NASTY_NUMBERS, NASTY_TEXTS
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from janus.v1 import encoder_pb2, encoder_pb2_grpc
from services.common.rpc_status import from_rpc_error
from services.common.settings import ConfigurationError

TEXTS = [text for text in NASTY_TEXTS + NASTY_NUMBERS if text] + real_tokenizers.SENTENCES
FEW = ["The cat sat on the mat.", "Paris", "안녕하세요 😀", "one two three four five six seven"]
SWITCHES = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}


def body(folder: Path, family: str = "bert") -> Transformer:
    """A random checkpoint in the reference's hands."""
    made = real_tokenizers.make(family, "", folder)
    made.tokenizer.save_pretrained(folder)
    return Transformer(str(folder))


def save(folder: Path, *modules: torch.nn.Module) -> SentenceTransformer:
    """As the reference saves it, in the newest form of its files."""
    reference = SentenceTransformer(modules=list(modules), device="cpu").eval()
    reference.save(str(folder), create_model_card=False)
    return reference


async def embed(folder: Path, texts: Sequence[str], **options: object) -> list[list[float]]:
    async with worker(models=str(folder)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        given = [encoder_pb2.EmbedTextInput(text=text) for text in texts]
        answer = await stub.EmbedText(encoder_pb2.EmbedTextRequest(input=given, **options))
        return [list(one.values) for one in answer.embeddings]


def assert_equal(told: list[list[float]], wanted: torch.Tensor) -> None:
    """To 1e-5 of a vector's largest number: some modes give vectors as long as 30."""
    assert len(told) == len(wanted)
    for one, other in zip(told, wanted.tolist(), strict=True):
        assert one == pytest.approx(other, abs=1e-5 * max(1.0, *map(abs, other)))


@pytest.mark.parametrize("family", real_tokenizers.FAMILIES)
async def test_families(family: str, tmp_path: Path) -> None:
    """On texts that tokenizers get wrong, those that are too long cut."""
    reference = save(tmp_path / "saved", body(tmp_path / "body", family), Pooling(48, "mean"), Normalize())
    expected = reference.encode(TEXTS, batch_size=1, convert_to_tensor=True)
    assert_equal(await embed(tmp_path / "saved", TEXTS, truncate=True), expected)


@pytest.mark.parametrize("mode", SWITCHES)
async def test_modes(mode: str, tmp_path: Path) -> None:
    """Not normalised, since no layer says so; in both forms of the file."""
    saved = tmp_path / "saved"
    reference = save(saved, body(tmp_path / "body"), Pooling(48, mode))
    expected = reference.encode(FEW, batch_size=1, convert_to_tensor=True)
    assert not torch.allclose(expected.norm(dim=1), torch.ones(len(FEW)))
    assert_equal(await embed(saved, FEW), expected)
    switches = {f"pooling_mode_{name}": kind == mode for kind, name in SWITCHES.items()}
    (saved / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 48, **switches}))
    assert_equal(await embed(saved, FEW), expected)


@pytest.mark.parametrize("form", ["newer", "older"])
async def test_several_modes_stand_side_by_side(form: str, tmp_path: Path) -> None:
    """In the order of the newer file, in one of its own for the older."""
    saved, modes = tmp_path / "saved", ["lasttoken", "mean", "cls", "max"]
    reference = save(saved, body(tmp_path / "body"), Pooling(48, modes))
    if form == "older":
        switches = {f"pooling_mode_{SWITCHES[mode]}": True for mode in modes}
        (saved / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 48, **switches}))
        reference = SentenceTransformer(str(saved), device="cpu")
    expected = reference.encode(FEW, batch_size=1, convert_to_tensor=True)
    assert expected.shape == (len(FEW), 192)
    assert_equal(await embed(saved, FEW), expected)


ACTIVATIONS = {
    "tanh": torch.nn.Tanh(),
    "identity": torch.nn.Identity(),
    "relu": torch.nn.ReLU(),
    "gelu": torch.nn.GELU(),
    "silu": torch.nn.SiLU(),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
async def test_dense_layers(activation: str, tmp_path: Path) -> None:
    """Two, wider and narrower than what they get, the second without a bias; a normalising one where it stands."""
    torch.manual_seed(5)
    modules = (
        Pooling(48, ["mean", "max"]),
        Dense(96, 200, activation_function=ACTIVATIONS[activation]),
        Normalize(),
        Dense(200, 12, bias=False, activation_function=torch.nn.Identity()),
    )
    reference = save(tmp_path / "saved", body(tmp_path / "body"), *modules)
    expected = reference.encode(FEW, batch_size=1, convert_to_tensor=True)
    assert_equal(await embed(tmp_path / "saved", FEW), expected)


@pytest.mark.parametrize("is_normalized", [True, False])
async def test_dimensions(is_normalized: bool, tmp_path: Path) -> None:
    """The leading ones, of length 1 again, whatever the layers say: OpenAI's rule; the reference does so when told."""
    layers = (Pooling(48, ["mean", "cls"]), *([Normalize()] if is_normalized else []))
    reference = save(tmp_path / "saved", body(tmp_path / "body"), *layers)
    for dimensions in (1, 50, 96):
        expected = reference.encode(
            FEW, batch_size=1, convert_to_tensor=True, truncate_dim=dimensions, normalize_embeddings=True
        )
        assert expected.shape == (len(FEW), dimensions)
        assert_equal(await embed(tmp_path / "saved", FEW, dimensions=dimensions), expected)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await embed(tmp_path / "saved", FEW, dimensions=97)
    error = from_rpc_error(refused.value)
    assert (error.code, error.param) == ("invalid_request", "dimensions")
    assert "at most 96" in error.message


async def test_prompts_are_the_callers(tmp_path: Path) -> None:
    """A prompt that the files name is applied by neither unless it is asked for; who wants one writes it himself."""
    saved = tmp_path / "saved"
    reference = save(saved, body(tmp_path / "body"), Pooling(48, "mean", include_prompt=False), Normalize())
    config = json.loads((saved / "config_sentence_transformers.json").read_text())
    config["prompts"] = {"query": "query: ", "document": "passage: "}
    (saved / "config_sentence_transformers.json").write_text(json.dumps(config))
    expected = SentenceTransformer(str(saved), device="cpu").encode(FEW, batch_size=1, convert_to_tensor=True)
    assert_equal(await embed(saved, FEW), expected)
    written = [f"query: {text}" for text in FEW]
    assert_equal(await embed(saved, written), reference.encode(written, batch_size=1, convert_to_tensor=True))


async def test_the_limit_is_the_models_positions(tmp_path: Path) -> None:
    """The reference's own limit of tokens is no part of what a vector is."""
    saved = tmp_path / "saved"
    reference = save(saved, body(tmp_path / "body"), Pooling(48, "mean"), Normalize())
    (saved / "sentence_bert_config.json").write_text('{"max_seq_length": 8, "do_lower_case": true}')
    text = "cat " * 126
    expected = reference.encode([text], convert_to_tensor=True)
    assert_equal(await embed(saved, [text]), expected)
    assert SentenceTransformer(str(saved), device="cpu").max_seq_length == 8


async def test_the_real_minilm() -> None:
    """Below the 256 tokens at which the reference cuts this model's texts."""
    reference = SentenceTransformer(str(MINILM), device="cpu")
    texts = [text for text in [*TEXTS, "word " * 254] if len(reference.tokenizer(text)["input_ids"]) <= 256]
    assert len(texts) > 30
    expected = reference.encode(texts, batch_size=1, convert_to_tensor=True)
    assert_equal(await embed(MINILM, texts), expected)
    shorter = reference.encode(texts, batch_size=8, convert_to_tensor=True, truncate_dim=64, normalize_embeddings=True)
    assert_equal(await embed(MINILM, texts, dimensions=64), shorter)


def dense_checkpoint(folder: Path) -> Path:
    save(folder / "saved", body(folder / "body"), Pooling(48, "mean"), Dense(48, 16))
    return folder / "saved"


def test_pickled_layers_are_not_read(tmp_path: Path) -> None:
    saved = dense_checkpoint(tmp_path)
    weights = safetensors.torch.load_file(saved / "2_Dense/model.safetensors")
    (saved / "2_Dense/model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"JANUS_ENCODER_MODELS: .*2_Dense.*no weights at all"):
        runner(models=str(saved))
    torch.save(weights, saved / "2_Dense/pytorch_model.bin")
    with pytest.raises(ConfigurationError, match=r"pytorch_model.bin is a pickle, which can run code: convert it"):
        runner(models=str(saved))


def test_layers_whose_weights_are_not_what_they_say(tmp_path: Path) -> None:
    saved = dense_checkpoint(tmp_path)
    path = saved / "2_Dense/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "out_features": 17}))
    with pytest.raises(ConfigurationError, match=r"2_Dense/model.safetensors: holds .*\(16, 48\).*, not .*\(17, 48\)"):
        runner(models=str(saved))
    path.write_text(json.dumps({**config, "in_features": 47}))
    with pytest.raises(ConfigurationError, match=r"2_Dense: takes vectors of 47 numbers, but gets 48"):
        runner(models=str(saved))
    path.write_text(json.dumps(config))
    (saved / "2_Dense/model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigurationError, match=r"2_Dense/model.safetensors: not a whole safetensors file"):
        runner(models=str(saved))


def test_capitals_that_the_tokenizer_keeps(tmp_path: Path) -> None:
    """The files want lower case, but the tokenizer that all tasks share tells cases apart."""
    saved = tmp_path / "saved"
    save(saved, body(tmp_path / "body", "roberta"), Pooling(48, "mean"))
    (saved / "sentence_bert_config.json").write_text('{"max_seq_length": 128, "do_lower_case": true}')
    with pytest.raises(ConfigurationError, match="do_lower_case with a tokenizer that keeps capitals is not served"):
        runner(models=str(saved))


async def test_a_vector_is_never_nothing(tmp_path: Path) -> None:
    """Cutting to a component that is exactly 0 gives 0, not NaN."""
    saved = tmp_path / "saved"
    reference = save(
        saved, body(tmp_path / "body"), Pooling(48, "mean"), Dense(48, 4, activation_function=torch.nn.ReLU())
    )
    weights = reference[2].linear
    with torch.no_grad():
        weights.weight[0], weights.bias[0] = 0.0, 0.0
    reference.save(str(saved), create_model_card=False)
    [[value]] = await embed(saved, FEW[:1], dimensions=1)
    assert not math.isnan(value)
    assert value == 0.0
