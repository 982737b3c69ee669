"""The runner on a small random Llama: however a prompt is cut and whoever shares a step, the same tokens come."""

import random
from collections import OrderedDict
from collections.abc import Sequence as Items
from pathlib import Path

import pytest
import small_models
import torch

from model.sampling import Draw
from services.common.settings import ConfigurationError, DecoderSettings
from services.decoder import runner as runner_module
from services.decoder.block_manager import BlockManager
from services.decoder.runner import Runner
from services.decoder.scheduler import Batch, Scheduler
from services.decoder.sequence import Limits, Sequence

PROMPTS = [[5, 9, 11], [7], list(range(10, 41)), [90, 3, 3, 8, 60, 61, 62]]
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.save(small_models.llama(), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def runner(folder: Path) -> Runner:
    return Runner(settings(folder))


def settings(model: Path, /, **changes: object) -> DecoderSettings:
    chosen = {"model": model, "device": "cpu", "dtype": "float32", "block_size": 4, "num_cache_tokens": 400}
    return DecoderSettings(**{**chosen, **changes})


def sequence(runner: Runner, prompt: Items[int], given: Items[int] = (), *, temperature: float = 0.0) -> Sequence:
    params = runner.sampling_params(
        temperature=temperature, top_p=1, top_k=0, min_p=0, seed=11, min_tokens=0, stop_ids=()
    )
    return Sequence([*prompt, *given], len(prompt), Limits(NUM_TOKENS), params)


def run(runner: Runner, sequences: Items[Sequence], *, max_batch_tokens: int = 64) -> list[list[int]]:
    """The outputs of sequences that run together, in blocks that lie anywhere."""
    blocks = BlockManager(runner.num_blocks, runner.block_size)
    blocks._unheld = OrderedDict.fromkeys(random.Random(3).sample(range(runner.num_blocks), runner.num_blocks))
    scheduler = Scheduler(
        blocks, max_batch_tokens=max_batch_tokens, max_running=8, max_waiting=8, max_waiting_tokens=999
    )
    for one in sequences:
        scheduler.add(one)
    while not scheduler.is_idle:
        batch = scheduler.schedule()
        scheduler.commit(batch, [None if draw is None else draw.token for draw in runner.execute(batch)])
        for row in batch.rows:
            if row.sequence.finish_reason():
                scheduler.remove(row.sequence)
    blocks.check()
    return [one.token_ids[one.num_prompt_tokens :] for one in sequences]


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """Greedy answers of the reference library, computed anew from the start for each token."""
    reference = small_models.llama()
    answers = []
    for prompt in PROMPTS:
        ids = list(prompt)
        with torch.inference_mode():
            for _ in range(NUM_TOKENS):
                ids.append(int(reference(torch.tensor([ids])).logits[0, -1].argmax()))
        answers.append(ids[len(prompt) :])
    return answers


@pytest.mark.parametrize("max_batch_tokens", [1, 3, 7, 64])
def test_equal_to_the_reference_however_prompts_are_cut(
    runner: Runner, expected: list[list[int]], max_batch_tokens: int
) -> None:
    together = [sequence(runner, prompt) for prompt in PROMPTS]
    assert run(runner, together, max_batch_tokens=max_batch_tokens) == expected


def test_a_draw_depends_on_seed_and_position_alone(runner: Runner) -> None:
    alone = [run(runner, [sequence(runner, prompt, temperature=1.0)])[0] for prompt in PROMPTS]
    together = run(runner, [sequence(runner, prompt, temperature=1.0) for prompt in PROMPTS], max_batch_tokens=5)
    assert together == alone
    greedy = run(runner, [sequence(runner, prompt) for prompt in PROMPTS])
    assert alone != greedy


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("cut", [1, 5, NUM_TOKENS - 1])
def test_given_tokens_are_gone_on_from(runner: Runner, temperature: float, cut: int) -> None:
    for prompt in PROMPTS:
        (whole,) = run(runner, [sequence(runner, prompt, temperature=temperature)])
        (resumed,) = run(runner, [sequence(runner, prompt, whole[:cut], temperature=temperature)])
        assert resumed == whole


def test_what_it_says_of_itself(runner: Runner) -> None:
    assert (runner.device, runner.dtype, runner.kernel) == ("cpu", "float32", "portable")
    assert (runner.max_context_tokens, runner.vocabulary_size) == (128, small_models.VOCABULARY_SIZE)
    assert runner.num_blocks == 100
    assert runner.encode("w3 w4", add_special_tokens=True) == [3, 4]


def test_the_cache_is_as_large_as_its_bytes(folder: Path) -> None:
    bytes_per_token = 3 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, float32
    made = Runner(settings(folder, num_cache_tokens=0, cache_bytes=41 * bytes_per_token))
    assert made.num_blocks == 10


def test_a_cache_takes_its_share_of_what_is_there_at_most(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token_bytes = 3 * 2 * 2 * 8 * 4
    monkeypatch.setattr(runner_module, "available_bytes", lambda: 100 * token_bytes)
    assert Runner(settings(folder, num_cache_tokens=0)).num_blocks == 12
    assert Runner(settings(folder, num_cache_tokens=0, cache_memory_ratio=0.8)).num_blocks == 20
    assert Runner(settings(folder, num_cache_tokens=50)).num_blocks == 12
    with pytest.raises(ConfigurationError, match=r"^JANUS_DECODER_NUM_CACHE_TOKENS: .* 51 tokens takes 19584 bytes"):
        Runner(settings(folder, num_cache_tokens=51))


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"model": Path("/nowhere")}, "JANUS_DECODER_MODEL"),
        ({"device": "abacus"}, "JANUS_DECODER_DEVICE"),
        ({"num_cache_tokens": 3}, "JANUS_DECODER_NUM_CACHE_TOKENS"),
        ({"num_cache_tokens": 0, "cache_bytes": 100}, "JANUS_DECODER_CACHE_BYTES"),
        ({"num_cache_tokens": 10**13}, "JANUS_DECODER_NUM_CACHE_TOKENS"),
    ],
)
def test_what_can_not_be_loaded_names_its_setting(folder: Path, changes: dict[str, object], setting: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{setting}: "):
        Runner(settings(folder, **changes))


def test_a_wrong_shared_variable_is_named_as_it_was_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JANUS_DEVICE", "abacus")
    with pytest.raises(ConfigurationError, match=r"^JANUS_DEVICE: "):
        Runner(settings(folder, device="abacus"))
    monkeypatch.setenv("JANUS_DECODER_DEVICE", "abacus")
    with pytest.raises(ConfigurationError, match=r"^JANUS_DECODER_DEVICE: "):
        Runner(settings(folder, device="abacus"))


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    small_models.save(small_models.bert("BertForMaskedLM"), tmp_path)
    with pytest.raises(ConfigurationError, match="not a causal language model"):
        Runner(settings(tmp_path))


def test_the_native_library_draws_what_torch_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choices of one prompt that are drawn by everything that may be asked, and what is told of their tokens."""
    asked = [
        {"temperature": 0, "top_logprobs": 0},
        {"temperature": 0, "presence_penalty": 1.5, "frequency_penalty": -0.5, "top_logprobs": 3},
        {"temperature": 1.2, "repetition_penalty": 1.3, "logit_bias": ((3, 4.0), (9, -100.0)), "top_logprobs": 20},
        {"temperature": 0.7, "allowed_token_ids": range(5, 60, 3), "stop_ids": (5, 8, 11), "min_tokens": 6},
        {"temperature": 1.5, "top_p": 0.9, "top_k": 30, "min_p": 0.02, "top_logprobs": 1},
    ]

    def drawn(kernel: str) -> dict[int, list[Draw]]:
        runner = Runner(settings(folder, block_size=16, kernel=kernel))
        assert runner.kernel.startswith("native") == (kernel == "native")
        sequences = []
        for choice, each in enumerate(asked):
            params = runner.sampling_params(**{"seed": 5, "stop_ids": (), **each})
            limits = Limits(NUM_TOKENS)
            sequences.append(Sequence([*PROMPTS[2]], len(PROMPTS[2]), limits, runner.of_choice(params, choice)))
        told: dict[int, list[Draw]] = {choice: [] for choice in range(len(asked))}
        execute = runner.execute

        def watched(batch: Batch) -> list[Draw | None]:
            draws = execute(batch)
            for row, draw in zip(batch.rows, draws, strict=True):
                told[sequences.index(row.sequence)] += [] if draw is None else [draw]
            return draws

        monkeypatch.setattr(runner, "execute", watched)
        run(runner, sequences)
        return told

    by_torch, natively = drawn("torch"), drawn("native")
    for choice, each in enumerate(asked):
        assert len(by_torch[choice]) == NUM_TOKENS
        for mine, other in zip(by_torch[choice], natively[choice], strict=True):
            assert mine.token == other.token
            assert (mine.logprob is None) == (other.logprob is None) == ("top_logprobs" not in each)
            assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [token for token, _ in mine.top] == [token for token, _ in other.top]
            assert [p for _, p in mine.top] == pytest.approx([p for _, p in other.top], abs=1e-4)
            assert len(mine.top) == each.get("top_logprobs", 0)
