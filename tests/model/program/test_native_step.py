"""A step in one call of the native library: equal to torch's, and the same bytes for a row in any company."""

import itertools
from pathlib import Path

import pytest
import small_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.checkpoints.packing import Packing
from model.checkpoints.registry import load, open_checkpoint
from model.decoder import CausalLanguageModel
from model.errors import CannotLower, StepError
from model.kernels.native.attention import NativeKernel
from model.kernels.native.library import ThreadPlan, native_library
from model.kv_cache import KVCache
from model.program.fusion import fuse
from model.program.interpreter import run
from model.program.lowering import lower
from model.program.native import NativeStep
from model.program.step import EagerStep, Step, StepProgram

CPU = torch.device("cpu")
VARIANTS = native_library().kernel_names()
DECODERS = {
    "gpt2": lambda: small_models.gpt2(),
    "gpt2-relu": lambda: small_models.gpt2(activation_function="relu", n_inner=72),
    "gpt2-gelu": lambda: small_models.gpt2(activation_function="gelu"),
    "llama": lambda: small_models.llama(),
    "llama-tied": lambda: small_models.llama(tie_word_embeddings=True, num_key_value_heads=6),
    "llama-biased": lambda: small_models.llama(attention_bias=True, mlp_bias=True, head_dim=16),
    "llama-wide": lambda: small_models.llama(head_dim=64, num_attention_heads=3, num_key_value_heads=1, hidden_size=96),
}
BLOCK = 16


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(native_library(), "variant", request.param)
    return request.param


@pytest.fixture(autouse=True)
def two_threads():
    before = native_library().plan
    native_library().use_threads(ThreadPlan(2))
    yield
    native_library().use_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: small_models.save(make(), tmp_path_factory.mktemp(kind)) for kind, make in DECODERS.items()}


def packed(folder: Path, packing: Packing = "float32") -> CausalLanguageModel:
    model = load(open_checkpoint(folder), device=CPU, dtype=torch.float32, packing=packing)
    assert isinstance(model, CausalLanguageModel)
    return model


def dense(folder: Path) -> CausalLanguageModel:
    model = load(open_checkpoint(folder), device=CPU, dtype=torch.float32)
    assert isinstance(model, CausalLanguageModel)
    return model


def native(folder: Path, packing: Packing = "float32", cache_dtype: torch.dtype = torch.float32) -> NativeStep:
    return NativeStep.of(packed(folder, packing), native_library(), cache_dtype)


def random_ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(small_models.VOCABULARY_SIZE, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def blocks_of(number: int, num_tokens: int = 128) -> list[int]:
    """The blocks of a sequence by its number, out of order."""
    count = num_tokens // BLOCK
    return [number * count + (5 * i + 3) % count for i in range(count)]


def step_of(pieces: list[tuple[int, list[int], int, int]], *, greedy: bool = False) -> Step:
    """Pieces (number of the sequence, its tokens, begin, end) of several sequences; every row is asked for."""
    token_ids, positions, slots = [], [], []
    for number, ids, begin, end in pieces:
        token_ids += ids[begin:end]
        positions += range(begin, end)
        slots += [blocks_of(number)[p // BLOCK] * BLOCK + p % BLOCK for p in range(begin, end)]
    rows = list(range(len(token_ids)))
    return Step(
        token_ids,
        positions,
        slots,
        query_lengths=[end - begin for _, _, begin, end in pieces],
        key_lengths=[end for _, _, _, end in pieces],
        block_table=[blocks_of(number)[: -(-end // BLOCK)] for number, _, _, end in pieces],
        scored=[] if greedy else rows,
        greedy=rows if greedy else [],
    )


def poisoned_cache(program: StepProgram) -> KVCache:
    cache = program.new_cache(32, BLOCK)
    for layer in cache.layers:
        layer.keys.fill_(torch.nan)
        layer.values.fill_(torch.nan)
    return cache


def scores_of(program: StepProgram, pieces: list[tuple[int, list[int], int, int]], cache: KVCache) -> Tensor:
    return program.run(step_of(pieces), cache)[0]


@pytest.mark.parametrize("kind", DECODERS)
def test_float32_scores_are_torchs(kind: str, variant: str, folders: dict[str, Path]) -> None:
    program, reference = native(folders[kind]), EagerStep(dense(folders[kind]), CPU)
    first, second = random_ids(70, 1), random_ids(33, 2)
    mine, theirs = poisoned_cache(program), reference.new_cache(32, BLOCK)
    for pieces in (
        [(0, first, 0, 40), (1, second, 0, 7)],
        [(0, first, 40, 41), (1, second, 7, 30)],
        [(1, second, 30, 31), (0, first, 41, 70)],
        [(1, second, 31, 32), (0, first, 69, 70)],
    ):
        torch.testing.assert_close(
            scores_of(program, pieces, mine), scores_of(reference, pieces, theirs), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize(("packing", "cache_dtype", "tolerance"), [("bf16", torch.bfloat16, 0.06)])
def test_bf16_scores_are_near_torchs(
    kind: str, packing: Packing, cache_dtype: torch.dtype, tolerance: float, variant: str, folders: dict[str, Path]
) -> None:
    program, reference = native(folders[kind], packing, cache_dtype), EagerStep(dense(folders[kind]), CPU)
    ids = random_ids(70, 1)
    mine = scores_of(program, [(0, ids, 0, 70)], poisoned_cache(program))
    theirs = scores_of(reference, [(0, ids, 0, 70)], reference.new_cache(32, BLOCK))
    assert (mine - theirs).abs().max() < tolerance * theirs.abs().max()


@pytest.mark.parametrize("kind", ["gpt2", "llama-wide"])
@pytest.mark.parametrize("packing", ["float32", "bf16", "int8"])
def test_the_list_run_operation_by_operation_gives_the_same(
    kind: str, packing: Packing, variant: str, folders: dict[str, Path]
) -> None:
    """The leaves themselves run the library's products and attention; norms, gates and sums are torch's there."""
    model = packed(folders[kind], packing)
    program = fuse(lower(model))
    step = NativeStep(program, model, native_library(), torch.float32)
    for block in model.decoder.blocks:
        block.attention.attend.kernel = NativeKernel()
    ids = random_ids(50, 3)
    whole = scores_of(step, [(0, ids, 0, 50)], poisoned_cache(step))
    eager = EagerStep(model, CPU)
    asked = step_of([(0, ids, 0, 50)])
    captured = {}
    model.register_forward_pre_hook(lambda _, args: captured.update(args=args))
    by_forward = eager.run(asked, eager.new_cache(32, BLOCK))[0]
    token_ids_T, metadata, cache = captured["args"]
    with torch.inference_mode():
        by_operation = run(program, model, token_ids_T=token_ids_T, metadata=metadata, cache=cache)
    assert torch.equal(by_operation, by_forward)
    # A code may round the other way where a norm differs in its last bit.
    tolerance = 1e-4 if packing == "float32" else 0.02 * by_forward.abs().max()
    assert (whole - by_forward).abs().max() < tolerance


@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama-wide"])
@pytest.mark.parametrize("packing", ["float32", "bf16", "int8"])
def test_a_row_gets_the_same_bytes_in_any_company_and_in_any_pieces(
    kind: str, packing: Packing, variant: str, folders: dict[str, Path]
) -> None:
    program = native(folders[kind], packing, torch.bfloat16)
    texts = [random_ids(60, seed) for seed in range(4)]
    alone = []
    for number, ids in enumerate(texts):
        cache = poisoned_cache(program)
        alone.append(torch.cat([scores_of(program, [(number, ids, at, at + 1)], cache) for at in range(60)]))
    for num_threads, cuts in itertools.product((1, 2, 4), ([60], [1, 59], [17, 18, 50, 60], [16, 32, 48, 60])):
        native_library().use_threads(ThreadPlan(num_threads))
        cache = poisoned_cache(program)
        begin = 0
        for end in [*cuts, 60]:
            if begin == end:
                continue
            pieces = [(number, ids, begin, end) for number, ids in enumerate(texts)]
            scores = scores_of(program, pieces, cache).unflatten(0, (4, end - begin))
            for number in range(4):
                assert torch.equal(scores[number], alone[number][begin:end])
            begin = end


@pytest.mark.parametrize("packing", ["float32", "bf16", "int8"])
def test_the_likeliest_is_the_scores_own(packing: Packing, variant: str, folders: dict[str, Path]) -> None:
    program = native(folders["llama-wide"], packing)
    pieces = [(0, random_ids(50, 1), 0, 50), (1, random_ids(9, 2), 0, 9)]
    scores = scores_of(program, pieces, poisoned_cache(program))
    nothing, likeliest = program.run(step_of(pieces, greedy=True), poisoned_cache(program))
    assert nothing.shape == (0, small_models.VOCABULARY_SIZE)
    assert likeliest == scores.argmax(dim=1).tolist()


def test_scored_and_greedy_rows_share_a_step(folders: dict[str, Path]) -> None:
    program = native(folders["llama"])
    ids = random_ids(40, 5)
    every = scores_of(program, [(0, ids, 0, 40)], poisoned_cache(program))
    step = step_of([(0, ids, 0, 40)])
    chosen = Step(
        step.token_ids,
        step.positions,
        step.slots,
        step.query_lengths,
        step.key_lengths,
        step.block_table,
        scored=[39, 3],
        greedy=[7, 38, 0],
    )
    scores, likeliest = program.run(chosen, poisoned_cache(program))
    assert torch.equal(scores, every[[39, 3]])
    assert likeliest == every[[7, 38, 0]].argmax(dim=1).tolist()


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_mixture_of_prompts_chunks_and_single_tokens(data: st.DataObject, folders: dict[str, Path]) -> None:
    program = CACHED.setdefault("program", None) or native(folders["llama"], "int8", torch.bfloat16)
    CACHED["program"] = program
    texts = [random_ids(100, seed) for seed in range(4)]
    if "alone" not in CACHED:
        CACHED["alone"] = [
            scores_of(program, [(number, ids, 0, 100)], poisoned_cache(program)) for number, ids in enumerate(texts)
        ]
    cache, done = poisoned_cache(program), [0, 0, 0, 0]
    while min(done) < 100:
        numbers = data.draw(st.permutations([number for number in range(4) if done[number] < 100]))
        pieces = []
        for number in numbers[: data.draw(st.integers(1, len(numbers)))]:
            end = min(100, done[number] + data.draw(st.sampled_from([1, 1, 2, 15, 16, 17, 40, 100])))
            pieces.append((number, texts[number], done[number], end))
            done[number] = end
        scores = iter(scores_of(program, pieces, cache))
        for number, _, begin, end in pieces:
            for at in range(begin, end):
                assert torch.equal(next(scores), CACHED["alone"][number][at])


CACHED: dict[str, object] = {}


@pytest.mark.parametrize("token", [-1, small_models.VOCABULARY_SIZE, 2**40])
def test_a_token_that_there_is_not_is_an_error_and_nothing_else(token: int, folders: dict[str, Path]) -> None:
    program = native(folders["llama"])
    with pytest.raises(StepError, match="beyond its table"):
        program.run(step_of([(0, [token], 0, 1)]), program.new_cache(32, BLOCK))


def test_scores_that_are_no_numbers_are_an_error(folders: dict[str, Path]) -> None:
    model = packed(folders["llama"])
    model.decoder.norm.weight.fill_(torch.nan)
    program = NativeStep.of(model, native_library(), torch.float32)
    with pytest.raises(StepError, match="no number"):
        program.run(step_of([(0, [1, 2, 3], 0, 3)], greedy=True), program.new_cache(32, BLOCK))


def test_what_the_library_has_not_is_named(folders: dict[str, Path]) -> None:
    with pytest.raises(CannotLower, match="not packed"):
        NativeStep.of(dense(folders["llama"]), native_library(), torch.float32)
