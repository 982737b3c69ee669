"""Adapters: chosen by row, equal to merged weights, carried on disk, refused when they are another model's."""

from pathlib import Path

import pytest
import small_models
import torch

from model.adapters import Adapter, attach, blank
from model.checkpoints.registry import load, open_checkpoint
from model.encoder import EncoderModel
from model.errors import CheckpointError
from model.linear import Linear
from model.metadata import AttentionMetadata


@pytest.fixture
def encoder(tmp_path: Path) -> EncoderModel:
    return fresh(tmp_path)


def fresh(folder: Path, **changes: object) -> EncoderModel:
    small_models.save(small_models.bert(**changes), folder)
    model = load(open_checkpoint(folder), device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(model, EncoderModel)
    return model


def random_adapter(model: EncoderModel, seed: int, rank: int) -> Adapter:
    adapter = blank(f"adapter-{seed}", ["no", "yes"], model, rank=rank, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    up = {path: 0.1 * torch.randn(tensor.shape, generator=generator) for path, tensor in adapter.up.items()}
    return Adapter(adapter.name, adapter.labels, adapter.down, up, adapter.head)


def run(model: EncoderModel, lengths: list[int], adapters: list[int]) -> tuple[torch.Tensor, ...]:
    ids = torch.arange(sum(lengths)) % small_models.VOCABULARY_SIZE
    metadata = AttentionMetadata.pack(lengths, adapters=adapters)
    return model.encoder(ids, torch.zeros_like(ids), metadata).split(lengths)


@torch.inference_mode()
def test_each_row_has_its_own_adapter(encoder: EncoderModel, tmp_path: Path) -> None:
    """Three sequences, none and two adapters of different rank, in one batch, against merged copies."""
    adapters = [random_adapter(encoder, 1, rank=4), random_adapter(encoder, 2, rank=7)]
    attach(encoder, adapters)
    mixed = run(encoder, [6, 6, 6], [2, 0, 1])
    for part, number, start in zip(mixed, [2, 0, 1], [0, 6, 12], strict=True):
        merged = fresh(tmp_path / str(number))
        if number:
            for path, module in merged.encoder.named_modules():
                if isinstance(module, Linear):
                    module.weight += adapters[number - 1].up[path] @ adapters[number - 1].down[path]
        ids = torch.arange(start, start + 6)
        expected = merged.encoder(ids, torch.zeros_like(ids), AttentionMetadata.pack([6]))
        torch.testing.assert_close(part, expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_blank_adapter_changes_nothing(encoder: EncoderModel) -> None:
    before = run(encoder, [9, 3], [0, 0])
    attach(encoder, [blank("blank", ["a", "b", "c"], encoder, rank=4, seed=0)])
    for one, other in zip(before, run(encoder, [9, 3], [1, 1]), strict=True):
        torch.testing.assert_close(one, other)


def test_an_adapter_survives_the_disk(encoder: EncoderModel, tmp_path: Path) -> None:
    adapter = random_adapter(encoder, 3, rank=2)
    adapter.save(tmp_path / "saved", dtype=torch.float32)
    again = Adapter.load(tmp_path / "saved")
    assert (again.name, again.labels) == (adapter.name, adapter.labels)
    for ours, theirs in ((adapter.down, again.down), (adapter.up, again.up), (adapter.head, again.head)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_adapter_of_another_model_is_refused(encoder: EncoderModel, tmp_path: Path) -> None:
    wider = fresh(tmp_path / "wider", hidden_size=64)
    with pytest.raises(CheckpointError, match="another model"):
        attach(encoder, [random_adapter(wider, 1, rank=2)])
    deeper = fresh(tmp_path / "deeper", num_hidden_layers=4)
    with pytest.raises(CheckpointError, match=r"there is no blocks\.3"):
        attach(encoder, [random_adapter(deeper, 1, rank=2)])


def test_a_broken_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not an adapter"):
        Adapter.load(tmp_path)
    (tmp_path / "adapter.json").write_text('{"name": "x", "labels": []}')
    (tmp_path / "adapter.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="not an adapter"):
        Adapter.load(tmp_path)
