"""On a CUDA device: every family's logits equal the CPU's. Run by `make test-gpu`."""

from collections.abc import Callable
from pathlib import Path

import pytest
import small_models
import torch
from transformers import PreTrainedModel

from model.checkpoints.registry import load, open_checkpoint
from model.device import resolve_device
from model.metadata import AttentionMetadata

pytestmark = pytest.mark.gpu
DECODERS: dict[str, Callable[[], PreTrainedModel]] = {"gpt2": small_models.gpt2, "llama": small_models.llama}


@pytest.fixture(autouse=True)
def exact_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("family", DECODERS)
@torch.inference_mode()
def test_decoder_over_pages(family: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(small_models.save(DECODERS[family](), tmp_path))
    ids = torch.randint(small_models.VOCABULARY_SIZE, (30,), generator=torch.Generator().manual_seed(1))
    expected = load(checkpoint, device=torch.device("cpu"), dtype=torch.float32)(ids, AttentionMetadata.pack([30]))
    device = resolve_device("cuda")
    model = load(checkpoint, device=device, dtype=torch.float32)
    cache = model.decoder.new_cache(8, 4)
    table = [5, 2, 7, 0, 1, 6, 3, 4]
    parts = []
    for begin, end in ((0, 13), (13, 14), (14, 30)):
        slots = [table[i // 4] * 4 + i % 4 for i in range(begin, end)]
        metadata = AttentionMetadata.pack(
            [end - begin], key_lengths=[end], slot_mapping=slots, block_table=[table], device=device
        )
        parts.append(model(ids[begin:end].to(device), metadata, cache))
    torch.testing.assert_close(torch.cat(parts).cpu(), expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_encoder(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(small_models.save(small_models.bert("BertForSequenceClassification"), tmp_path))
    ids = torch.arange(24)
    cpu = load(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    expected = cpu(ids, torch.zeros_like(ids), AttentionMetadata.pack([9, 15]))
    device = resolve_device("cuda")
    model = load(checkpoint, device=device, dtype=torch.float32)
    metadata = AttentionMetadata.pack([9, 15], device=device)
    logits = model(ids.to(device), torch.zeros_like(ids, device=device), metadata)
    torch.testing.assert_close(logits.cpu(), expected, atol=1e-4, rtol=1e-4)
