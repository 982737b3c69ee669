"""Logits of every family equal transformers' for small random checkpoints, to 1e-4 in float32."""

from pathlib import Path

import pytest
import small_models
import torch
from transformers import PreTrainedModel

from model.checkpoints.registry import load, open_checkpoint
from model.kv_cache import KVCache
from model.metadata import AttentionMetadata, Memory, block_table_tensor

TOLERANCE = 1e-4
CPU = torch.device("cpu")

DECODERS = {
    "gpt2": lambda: small_models.gpt2(),
    "gpt2-relu": lambda: small_models.gpt2(activation_function="relu", n_inner=72),
    "llama": lambda: small_models.llama(),
    "llama-tied": lambda: small_models.llama(tie_word_embeddings=True, num_key_value_heads=6),
    "llama-biased": lambda: small_models.llama(attention_bias=True, mlp_bias=True, head_dim=16),
    "llama-linear-rope": lambda: small_models.llama(
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    ),
    "llama-3-rope": lambda: small_models.llama(
        rope_parameters={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
            "rope_theta": 10000.0,
        }
    ),
}


def loaded(reference: PreTrainedModel, folder: Path) -> torch.nn.Module:
    return load(open_checkpoint(small_models.save(reference, folder)), device=CPU, dtype=torch.float32)


def random_ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(small_models.VOCABULARY_SIZE, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", DECODERS)
@torch.inference_mode()
def test_decoder_logits(kind: str, tmp_path: Path) -> None:
    reference = DECODERS[kind]()
    model = loaded(reference, tmp_path)
    first, second = random_ids(37, 1), random_ids(12, 2)
    logits = model(torch.cat([first, second]), AttentionMetadata.pack([37, 12]))
    torch.testing.assert_close(logits[:37], reference(first[None]).logits[0], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(logits[37:], reference(second[None]).logits[0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("chunks", [[40], [1] * 40, [7, 1, 1, 20, 11], [39, 1]])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@torch.inference_mode()
def test_pages_and_chunks_of_any_size(kind: str, chunks: list[int], block_size: int, tmp_path: Path) -> None:
    """Two sequences, one in chunks and one a chunk behind, share scattered pages; logits equal one pass."""
    model = loaded(DECODERS[kind](), tmp_path)
    sequences = [random_ids(40, 3), random_ids(40, 4)]
    expected = [model(ids, AttentionMetadata.pack([40])) for ids in sequences]
    num_blocks = -(-40 // block_size)
    scattered = torch.randperm(2 * num_blocks, generator=torch.Generator().manual_seed(5)).tolist()
    tables = [scattered[:num_blocks], scattered[num_blocks:]]
    cache = model.decoder.new_cache(2 * num_blocks, block_size)
    starts = [0, 0]
    outputs: list[list[torch.Tensor]] = [[], []]
    schedule = [(chunks[0], 0), *zip(chunks[1:], chunks[:-1], strict=True), (0, chunks[-1])]
    for lengths in schedule:
        active = [(s, n) for s, n in enumerate(lengths) if n]
        ids = torch.cat([sequences[s][starts[s] : starts[s] + n] for s, n in active])
        slots = [
            tables[s][i // block_size] * block_size + i % block_size
            for s, n in active
            for i in range(starts[s], starts[s] + n)
        ]
        metadata = AttentionMetadata.pack(
            [n for _, n in active],
            key_lengths=[starts[s] + n for s, n in active],
            slot_mapping=slots,
            block_table=[tables[s] for s, _ in active],
        )
        logits = model(ids, metadata, cache)
        for part, (s, n) in zip(logits.split([n for _, n in active]), active, strict=True):
            outputs[s].append(part)
            starts[s] += n
    for s in range(2):
        torch.testing.assert_close(torch.cat(outputs[s]), expected[s], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_logit_rows_choose_tokens(tmp_path: Path) -> None:
    model = loaded(small_models.llama(), tmp_path)
    ids = random_ids(20)
    everything = model(ids, AttentionMetadata.pack([12, 8]))
    chosen = model(ids, AttentionMetadata.pack([12, 8], logit_rows=[11, 19]))
    torch.testing.assert_close(chosen, everything[[11, 19]], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("BertModel", "last_hidden_state"),
        ("BertForMaskedLM", "logits"),
        ("BertForTokenClassification", "logits"),
    ],
)
@torch.inference_mode()
def test_encoder_rows(kind: str, output: str, tmp_path: Path) -> None:
    reference = small_models.bert(kind)
    model = loaded(reference, tmp_path)
    first, second = random_ids(30, 1), random_ids(30, 2)
    types = torch.tensor([0] * 12 + [1] * 18)
    rows = model(torch.cat([first, second, first[:5]]), torch.cat([types, types, types[:5]]), pack(30, 30, 5))
    for ids, part in zip((first, second, first[:5]), rows.split([30, 30, 5]), strict=True):
        expected = getattr(reference(ids[None], token_type_ids=types[None, : len(ids)]), output)[0]
        torch.testing.assert_close(part, expected, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_sequence_classifier(tmp_path: Path) -> None:
    reference = small_models.bert("BertForSequenceClassification", num_labels=5)
    model = loaded(reference, tmp_path)
    texts = [random_ids(n, n) for n in (9, 9, 3, 50)]
    scores = model(torch.cat(texts), torch.zeros(71, dtype=torch.int64), pack(9, 9, 3, 50))
    for ids, row in zip(texts, scores, strict=True):
        torch.testing.assert_close(row, reference(ids[None]).logits[0], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_span_extractor(tmp_path: Path) -> None:
    reference = small_models.bert("BertForQuestionAnswering")
    model = loaded(reference, tmp_path)
    ids = random_ids(25)
    start_end = model(ids, torch.zeros(25, dtype=torch.int64), pack(25))
    expected = reference(ids[None])
    torch.testing.assert_close(start_end[:, 0], expected.start_logits[0], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(start_end[:, 1], expected.end_logits[0], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_encoder_decoder(tmp_path: Path) -> None:
    """The full pass equals the reference; token by token over pages equals the full pass."""
    reference = small_models.encoder_decoder()
    model = loaded(reference, tmp_path)
    sources, targets = [random_ids(14, 1), random_ids(6, 2)], [random_ids(9, 3), random_ids(9, 4)]
    block_size = 4
    memory = Memory(
        lengths=(14, 6),
        slot_mapping_U=torch.tensor(
            [*[b * 4 + i for b in (5, 0, 2, 1) for i in range(4)][:14], 12, 13, 14, 15, 16, 17]
        ),
        block_table_SM=block_table_tensor([[5, 0, 2, 1], [3, 4]]),
    )
    cache = model.decoder.new_cache(8, block_size, num_memory_blocks=6)
    model.remember(torch.cat(sources), torch.zeros(20, dtype=torch.int64), pack(14, 6), memory, cache)
    tables = [[0, 2, 4], [1, 3, 5]]

    def run(begin: int, end: int, into: KVCache) -> torch.Tensor:
        slots = [table[i // 4] * 4 + i % 4 for table in tables for i in range(begin, end)]
        metadata = AttentionMetadata.pack(
            [end - begin] * 2, key_lengths=[end] * 2, slot_mapping=slots, block_table=tables
        )
        ids = torch.cat([target[begin:end] for target in targets])
        return model(ids, metadata, into, memory).unflatten(0, (2, -1))

    whole = run(0, 9, cache)
    steps = torch.cat([run(0, 3, cache), *(run(i, i + 1, cache) for i in range(3, 9))], dim=1)
    torch.testing.assert_close(steps, whole, atol=TOLERANCE, rtol=0)
    for s in range(2):
        expected = reference(sources[s][None], decoder_input_ids=targets[s][None]).logits[0]
        torch.testing.assert_close(whole[s], expected, atol=TOLERANCE, rtol=0)


def pack(*lengths: int) -> AttentionMetadata:
    return AttentionMetadata.pack(lengths)
