"""The engine with the default model: however a prompt is cut, found or computed again, the same text comes."""

import asyncio
from collections.abc import Sequence as Items

import pytest

from services.common.metrics import DecoderMetrics
from services.common.settings import DecoderSettings
from services.decoder.block_manager import BlockManager
from services.decoder.choice import Choice
from services.decoder.engine import Engine
from services.decoder.events import Delta, Ended, Started
from services.decoder.generation import Generation
from services.decoder.runner import Runner
from services.decoder.scheduler import Scheduler
from services.decoder.sequence import Limits, Sequence
from services.decoder.text_stream import TextStream

RULES = "You are a guide to the capitals of the world. Answer with one sentence and name the country. " * 3
QUESTIONS = ["Name the capital of France.", "What is the capital of Japan?"]
NUM_TOKENS = 8


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner(DecoderSettings(device="cpu", num_cache_tokens=4096))


class House:
    """An engine of its own over the one model."""

    def __init__(self, runner: Runner, *, is_caching: bool = True, chunk: int = 512, num_blocks: int = 0) -> None:
        self.runner = runner
        self.blocks = BlockManager(num_blocks or runner.num_blocks, runner.block_size, is_caching=is_caching)
        scheduler = Scheduler(
            self.blocks, max_batch_tokens=chunk, max_running=8, max_waiting=99, max_waiting_tokens=10**6
        )
        self.metrics = DecoderMetrics()
        self.engine = Engine(scheduler, runner, self.metrics, "model", step_seconds=0.1)
        self.engine.start()

    def submit(self, prompt: Items[int], num_tokens: int = NUM_TOKENS) -> Generation:
        params = self.runner.sampling_params(
            temperature=0, top_p=1, top_k=0, min_p=0, seed=0, min_tokens=0, stop_ids=()
        )
        sequence = Sequence([*prompt], len(prompt), Limits(num_tokens), params)
        generation = Generation([Choice(sequence, TextStream(self.runner.new_detokenizer()))])
        self.engine.submit(generation)
        return generation

    async def ask(self, prompt: Items[int], num_tokens: int = NUM_TOKENS) -> tuple[str, Started]:
        events = [event async for event in self.submit(prompt, num_tokens).events()]
        assert isinstance(events[0], Started)
        assert isinstance(events[-1], Ended)
        return "".join(event.text for event in events if isinstance(event, Delta)), events[0]

    async def close(self) -> None:
        await asyncio.to_thread(self.engine.stop)
        self.blocks.check()


def prompts(runner: Runner) -> list[list[int]]:
    asked = (f"<|im_start|>system\n{RULES}<|im_end|>\n<|im_start|>user\n{q}<|im_end|>\n" for q in QUESTIONS)
    return [runner.encode(f"{each}<|im_start|>assistant\n", add_special_tokens=False) for each in asked]


@pytest.fixture(scope="module")
def expected(runner: Runner) -> list[str]:
    """Alone, in one piece, with nothing cached."""

    async def ask() -> list[str]:
        house = House(runner, is_caching=False)
        answers = [(await house.ask(prompt))[0] for prompt in prompts(runner)]
        await house.close()
        return answers

    answers = asyncio.run(ask())
    assert "Paris" in answers[0]
    return answers


@pytest.mark.parametrize("is_caching", [True, False])
@pytest.mark.parametrize("chunk", [16, 64, 512])
async def test_the_same_text_with_chunks_and_with_the_cache(
    runner: Runner, expected: list[str], chunk: int, is_caching: bool
) -> None:
    house = House(runner, is_caching=is_caching, chunk=chunk)
    for prompt, answer in zip(prompts(runner), expected, strict=True):
        assert (await house.ask(prompt))[0] == answer
    again, started = await house.ask(prompts(runner)[0])
    assert again == expected[0]
    assert (started.num_cached_tokens > 64) == is_caching
    await house.close()


async def test_the_same_text_for_who_had_to_make_room(runner: Runner, expected: list[str]) -> None:
    """The cache has room for both prompts and for one block of what they write, which is more than two."""
    needed = sum(-(-len(prompt) // runner.block_size) for prompt in prompts(runner))
    house = House(runner, is_caching=False, num_blocks=needed + 1)
    generations = [house.submit(prompt, 2 * runner.block_size) for prompt in prompts(runner)]
    for generation, answer in zip(generations, expected, strict=True):
        text = "".join([event.text async for event in generation.events() if isinstance(event, Delta)])
        assert text.startswith(answer)
    assert (house.metrics.registry.get_sample_value("janus_preemptions_total", {"model": "model"}) or 0) > 0
    await house.close()


async def test_what_is_cached_costs_no_time(runner: Runner) -> None:
    """A thousand tokens that came before: the first token comes in a fraction of the time."""
    house = House(runner)
    prompt = [n % 900 + 100 for n in range(1000)]
    _, fresh = await house.ask(prompt, 1)
    found = [(await house.ask(prompt, 1))[1] for _ in range(3)]
    await house.close()
    assert (fresh.num_cached_tokens, found[0].num_cached_tokens) == (0, 992)
    assert min(started.prefill_seconds for started in found) < fresh.prefill_seconds / 4
