"""The worker's services over a real connection, with a small random Llama behind them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import small_models

from janus.v1 import common_pb2, decoder_pb2, decoder_pb2_grpc, models_pb2, models_pb2_grpc, streams_pb2
from services.common.call_metadata import CACHE_NAMESPACE, PRIORITY
from services.common.errors import JanusError
from services.common.grpc_server import start_server
from services.common.metrics import DecoderMetrics
from services.common.rpc_status import from_rpc_error
from services.common.settings import DecoderSettings
from services.decoder.server import services_behind
from services.decoder.servicer import WorkerDoor
from services.decoder.worker import DecoderWorker

TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"


@dataclass(frozen=True)
class House:
    """A worker behind its door, and stubs to call it."""

    door: WorkerDoor
    metrics: DecoderMetrics
    decoder: "decoder_pb2_grpc.DecoderServiceAsyncStub"
    models: "models_pb2_grpc.ModelServiceAsyncStub"

    def sample(self, name: str) -> float | None:
        """A metric of the model."""
        return self.metrics.registry.get_sample_value(f"janus_{name}", {"model": "small"})

    async def until(self, name: str, value: float) -> None:
        """Waits for a metric of the model to have a value, a few seconds at most."""
        for _ in range(500):
            if self.sample(name) == value:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{name} is {self.sample(name)}, not {value}")

    async def generate(
        self,
        prompt: str | list[int] = "w5 w9 w11",
        model: str = "",
        metadata: tuple[tuple[str, str], ...] = (),
        **options: object,
    ) -> list[streams_pb2.StreamEvent]:
        request = decoder_pb2.GenerateRequest(model=model, options=decoder_pb2.GenerationOptions(**options))
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.token_ids.ids.extend(prompt)
        return [response.event async for response in self.decoder.Generate(request, metadata=metadata)]

    async def chat(self, *said: tuple[str, str], **options: object) -> list[streams_pb2.StreamEvent]:
        messages = [decoder_pb2.ChatMessage(role=role, content=content) for role, content in said]
        request = decoder_pb2.ChatRequest(messages=messages, options=decoder_pb2.GenerationOptions(**options))
        return [response.event async for response in self.decoder.Chat(request)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_models.save(small_models.llama(), tmp_path_factory.mktemp("llama"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
async def house(folder: Path) -> AsyncIterator[House]:
    """A worker that serves; afterwards every block must be free."""
    settings = DecoderSettings(
        model=folder, model_id="small", device="cpu", dtype="float32", block_size=4, num_cache_tokens=120
    )
    metrics, door = DecoderMetrics(), WorkerDoor()
    server = await start_server(services_behind(door, metrics), host="127.0.0.1", port=0, setting="X", metrics=metrics)
    door.worker = await DecoderWorker.start(settings, metrics)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        decoder, models = decoder_pb2_grpc.DecoderServiceStub(channel), models_pb2_grpc.ModelServiceStub(channel)
        made = House(door, metrics, decoder, models)
        worker = door.worker
        yield made
    await server.drain(0)
    await asyncio.to_thread(worker.engine.stop)
    assert made.sample("kv_cache_usage_ratio") == 0


async def refusal(call: object) -> JanusError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call  # type: ignore[misc]
    return from_rpc_error(refused.value)


def token_ids(events: list[streams_pb2.StreamEvent]) -> list[int]:
    return [token_id for event in events for token_id in event.delta.token_ids]


def text(events: list[streams_pb2.StreamEvent]) -> str:
    return "".join(event.delta.text for event in events)


async def test_the_events_of_a_stream(house: House) -> None:
    events = await house.generate(max_tokens=6, temperature=0, ignore_eos=True, seed=-3, return_prompt_token_ids=True)
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["started", *["delta"] * 6, "finished", "ended"]
    assert [event.sequence for event in events] == list(range(len(events)))
    started, ended = events[0].started, events[-1].ended
    assert (started.model, started.seed) == ("small", -3)
    assert list(started.prompt_token_ids) == [5, 9, 11]
    assert started.stream_id
    assert events[-2].finished.finish_reason == streams_pb2.FINISH_REASON_LENGTH
    assert (ended.usage.prompt_tokens, ended.usage.completion_tokens, ended.usage.total_tokens) == (3, 6, 9)
    timings = ended.timings
    assert min(timings.prefill_ms, timings.decode_ms, timings.tokenize_ms) > 0
    parts = timings.queue_ms + timings.prefill_ms + timings.decode_ms + timings.tokenize_ms
    assert parts <= timings.total_ms


async def test_a_prompt_that_is_far_too_long_is_refused_by_its_length(house: House, monkeypatch) -> None:
    def read(*_: object, **__: object) -> list[int]:
        raise AssertionError("it was tokenized")

    monkeypatch.setattr(house.door.open().runner, "encode", read)
    message = "The prompt has {} characters, of a text for 120 tokens at most 65536 are read."
    told = await refusal(house.generate("x" * 65_537))
    assert (told.code, told.param, told.message) == ("context_length_exceeded", "prompt", message.format(65_537))
    told = await refusal(house.chat(("user", "x" * 10**6)))
    assert (told.code, told.param) == ("context_length_exceeded", "messages")
    assert told.message == message.format(10**6 + 1)


async def test_text_and_token_ids_and_chat_are_one_way(house: House) -> None:
    options = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
    by_text = await house.generate("w5 w9 w11", **options)
    by_ids = await house.generate([5, 9, 11], **options)
    by_chat = await house.chat(("developer", "w5 w9"), ("user", "w11"), **options)
    assert token_ids(by_text) == token_ids(by_ids) == token_ids(by_chat)
    assert text(by_text) == text(by_ids) == text(by_chat)
    assert list(by_text[0].started.prompt_token_ids) == []


async def test_a_prompt_that_came_before_is_found_in_its_namespace_alone(house: House) -> None:
    prompt, options = list(range(1, 42)), {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
    answers = []
    for namespace, num_cached in (("a", 0), ("a", 40), ("b", 0), ("", 0), ("b", 40)):
        metadata = ((CACHE_NAMESPACE, namespace),)
        answers.append(await house.generate(prompt, metadata=metadata, **options))
        assert answers[-1][-1].ended.usage.cached_tokens == num_cached
    assert all(token_ids(answer) == token_ids(answers[0]) for answer in answers)
    assert house.sample("prompt_tokens_total") == 5 * 41
    assert house.sample("prompt_cached_tokens_total") == house.sample("prefix_cache_hits_total") == 80
    assert house.sample("prefix_cache_queries_total") == 5 * 41


@pytest.mark.parametrize("said", ["x", "1.5", "101", "-101"])
async def test_a_priority_that_is_none(house: House, said: str) -> None:
    error = await refusal(house.generate(metadata=((PRIORITY, said),)))
    assert (error.code, error.param) == ("invalid_request", "priority")


async def test_a_priority_goes_with_its_sequence(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, seen = house.door.open().engine, []
    submit = engine.submit
    monkeypatch.setattr(engine, "submit", lambda made: (seen.append(made.leader.sequence.priority), submit(made)))
    for metadata in ((), ((PRIORITY, "-100"),), ((PRIORITY, "7"),)):
        await house.generate(metadata=metadata)
    assert seen == [0, -100, 7]


async def test_a_drawn_seed_is_told_and_repeats_the_answer(house: House) -> None:
    first = await house.generate(max_tokens=10, temperature=1.5, ignore_eos=True)
    seed = first[0].started.seed
    again = await house.generate(max_tokens=10, temperature=1.5, ignore_eos=True, seed=seed)
    other = await house.generate(max_tokens=10, temperature=1.5, ignore_eos=True, seed=seed ^ 1)
    assert token_ids(first) == token_ids(again)
    assert token_ids(first) != token_ids(other)


async def test_a_stream_goes_on_from_given_tokens(house: House) -> None:
    options = {"max_tokens": 10, "temperature": 1.0, "ignore_eos": True, "seed": 4}
    whole = await house.generate(**options)
    for cut in (1, 4, 9):
        given = common_pb2.TokenIds(ids=token_ids(whole)[:cut])
        rest = await house.generate(**options, output_token_ids=[given])
        told_before = "".join(event.delta.text for event in whole[1 : 1 + cut])
        assert token_ids(rest) == token_ids(whole)[cut:]
        assert told_before + text(rest) == text(whole)
        usage, usage_of_whole = rest[-1].ended.usage, whole[-1].ended.usage
        assert usage.total_tokens == usage_of_whole.total_tokens
        # Blocks of four tokens, and the last token is computed: of these the prompt's three.
        assert (usage_of_whole.cached_tokens, usage.cached_tokens) == (0, 3 if 3 + cut > 4 else 0)


async def test_stop_tokens_and_stop_strings(house: House) -> None:
    options = {"max_tokens": 10, "temperature": 0, "ignore_eos": True}
    whole = await house.generate(**options)
    third = token_ids(whole)[2]
    index = token_ids(whole).index(third)
    by_token = await house.generate(**options, stop_token_ids=[third])
    assert token_ids(by_token) == token_ids(whole)[: index + 1]
    assert by_token[-2].finished.finish_reason == streams_pb2.FINISH_REASON_STOP
    stop = text(whole).split()[1] + " "
    by_string = await house.generate(**options, stop=[stop])
    assert text(by_string) == text(whole)[: text(whole).index(stop)]
    assert by_string[-2].finished.finish_reason == streams_pb2.FINISH_REASON_STOP
    at_least = await house.generate(**options, stop_token_ids=[third], min_tokens=8)
    assert len(token_ids(at_least)) >= 8
    assert third not in token_ids(at_least)[:7]


async def test_defaults(house: House) -> None:
    assert len(token_ids(await house.generate(ignore_eos=True))) == 16
    everything_left = await house.chat(("user", "w5 w9"), ignore_eos=True)
    assert everything_left[-1].ended.usage.total_tokens == 120


@pytest.mark.parametrize(
    ("asked", "code", "param"),
    [
        ({"prompt": "w1", "model": "other"}, "model_not_found", "model"),
        ({"prompt": ""}, "invalid_request", "prompt"),
        ({"prompt": []}, "invalid_request", "prompt"),
        ({"prompt": [96]}, "invalid_request", "prompt"),
        ({"prompt": [-1]}, "invalid_request", "prompt"),
        ({"prompt": [1] * 120}, "context_length_exceeded", "prompt"),
        ({"prompt": [1] * 5000}, "context_length_exceeded", "prompt"),
        ({"prompt": [1] * 110, "max_tokens": 11}, "context_length_exceeded", "max_tokens"),
        ({"top_p": 0}, "invalid_request", "top_p"),
        ({"temperature": float("nan")}, "invalid_request", "temperature"),
        ({"n": 0}, "invalid_request", "n"),
        ({"n": 2, "output_token_ids": [common_pb2.TokenIds()]}, "invalid_request", "output_token_ids"),
        ({"presence_penalty": 3}, "invalid_request", "presence_penalty"),
        ({"frequency_penalty": -3}, "invalid_request", "frequency_penalty"),
        ({"repetition_penalty": 1e-300}, "invalid_request", "repetition_penalty"),
        ({"logit_bias": {96: 1}}, "invalid_request", "logit_bias"),
        ({"allowed_token_ids": common_pb2.TokenIds()}, "invalid_request", "allowed_token_ids"),
        ({"stop_token_ids": range(96), "min_tokens": 1}, "invalid_request", "stop_token_ids"),
        ({"top_logprobs": 1}, "invalid_request", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_request", "top_logprobs"),
        ({"echo": True, "logprobs": True}, "invalid_request", "logprobs"),
    ],
)
async def test_refusals_of_completions(house: House, asked: dict[str, object], code: str, param: str) -> None:
    error = await refusal(house.generate(**asked))
    assert (error.code, error.param) == (code, param)


async def test_a_prompt_that_is_too_long_is_told_both_counts(house: House) -> None:
    error = await refusal(house.chat(("user", "w1 " * 300)))
    assert (error.code, error.param) == ("context_length_exceeded", "messages")
    assert "300" in error.message
    assert "119" in error.message


async def test_refusals_of_chat(house: House) -> None:
    assert (await refusal(house.chat())).param == "messages"
    assert (await refusal(house.chat(("robot", "w1")))).param == "messages[0].role"


async def test_before_and_after_it_serves(house: House) -> None:
    worker, house.door.worker = house.door.worker, None
    assert (await refusal(house.generate())).code == "model_loading"
    assert len((await house.models.ListModels(models_pb2.ListModelsRequest())).models) == 0
    house.door.worker = worker
    house.door.is_draining = True
    assert (await refusal(house.generate())).code == "draining"
    (shown,) = (await house.models.ListModels(models_pb2.ListModelsRequest())).models
    assert shown.state == models_pb2.MODEL_STATE_DRAINING


async def test_the_model_says_what_it_is(house: House) -> None:
    model = (await house.models.GetModel(models_pb2.GetModelRequest(model="small"))).model
    assert (model.id, list(model.tasks), model.max_input_tokens) == ("small", ["chat", "completions"], 120)
    assert (model.device, model.dtype, model.kernel) == ("cpu", "float32", "portable")
    assert model.state == models_pb2.MODEL_STATE_READY
    assert len(model.digest) == 64
    assert model.generation_defaults.temperature == 0
    error = await refusal(house.models.GetModel(models_pb2.GetModelRequest(model="other")))
    assert (error.code, error.param) == ("model_not_found", "model")


async def test_a_reader_that_goes_away_frees_its_blocks(house: House) -> None:
    options = decoder_pb2.GenerationOptions(max_tokens=110, ignore_eos=True)
    call = house.decoder.Generate(decoder_pb2.GenerateRequest(text="w5 w9", options=options))
    await call.read()
    await house.until("requests_running", 1)
    call.cancel()
    await house.until("requests_running", 0)
    assert house.sample("kv_cache_usage_ratio") == 0
    assert house.sample("prompt_tokens_total") == 2, "the prompt was computed"
    assert (house.sample("generated_tokens_total") or 0) < 110


async def test_choices_have_numbers_of_their_own(house: House) -> None:
    """Each is what it is alone: drawn with its index, and counted once with the prompt."""
    asked = {"max_tokens": 6, "temperature": 1.5, "seed": 3, "ignore_eos": True}
    events = await house.generate(n=3, **asked)
    mine = {c: [e for e in events if e.HasField("delta") and e.delta.choice == c] for c in range(3)}
    assert sorted(e.finished.choice for e in events if e.HasField("finished")) == [0, 1, 2]
    assert len({text(deltas) for deltas in mine.values()}) == 3
    usage = events[-1].ended.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 18, 21)
    assert token_ids(mine[0]) == token_ids(await house.generate(**asked))
    again = await house.generate(n=2, **asked)
    assert [t for e in again if e.delta.choice == 1 for t in e.delta.token_ids] == token_ids(mine[1])


async def test_log_probabilities_are_told_with_the_tokens(house: House) -> None:
    events = await house.generate(max_tokens=5, temperature=0, ignore_eos=True, logprobs=True, top_logprobs=2)
    scores = [each for e in events for each in e.delta.logprobs]
    assert [each.token.token_id for each in scores] == token_ids(events)
    for each in scores:
        assert each.top[0].token_id == each.token.token_id
        assert each.top[0].logprob == each.token.logprob > each.top[1].logprob
        assert each.token.text == f"w{each.token.token_id}"
        assert each.token.text_bytes == each.token.text.encode()
    plain = await house.generate(max_tokens=5, temperature=0, ignore_eos=True)
    assert token_ids(plain) == token_ids(events)
    assert not any(e.delta.logprobs for e in plain)


async def test_biases_and_allowed_tokens_steer(house: House) -> None:
    asked = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
    assert token_ids(await house.generate(logit_bias={17: 100}, **asked)) == [17] * 4
    allowed = common_pb2.TokenIds(ids=[20, 21])
    assert set(token_ids(await house.generate(allowed_token_ids=allowed, **asked))) <= {20, 21}
    both = token_ids(
        await house.generate(logit_bias={17: 100, 18: 100}, frequency_penalty=2, **{**asked, "max_tokens": 9})
    )
    assert min(both.count(17), both.count(18)) >= 3


async def test_penalties_keep_a_token_from_coming_again(house: House) -> None:
    asked = {"temperature": 0, "ignore_eos": True, "max_tokens": 2}
    asked["allowed_token_ids"] = common_pb2.TokenIds(ids=[17, 18])
    assert token_ids(await house.generate("w7", **asked)) == [18, 18]
    for name, penalty in (("presence_penalty", 2), ("frequency_penalty", 2), ("repetition_penalty", 100)):
        assert token_ids(await house.generate("w7", **asked, **{name: penalty})) == [18, 17]


async def test_an_echo_tells_the_prompt_s_text(house: House) -> None:
    for prompt in ("w5 w9", [5, 9]):
        events = await house.generate(prompt, max_tokens=0, echo=True)
        assert [e.WhichOneof("event") for e in events] == ["started", "finished", "ended"]
        assert events[0].started.prompt_text == "w5 w9"
        assert events[1].finished.finish_reason == streams_pb2.FINISH_REASON_LENGTH
    assert (await house.generate("w5", max_tokens=1))[0].started.prompt_text == ""


async def test_an_answer_goes_on_with_the_final_message(house: House) -> None:
    messages = [decoder_pb2.ChatMessage(role="assistant", content="w5 w9")]
    options = decoder_pb2.GenerationOptions(max_tokens=3, temperature=0, ignore_eos=True, return_prompt_token_ids=True)
    whole = decoder_pb2.ChatRequest(messages=messages, options=options, continue_final_message=True)
    events = [response.event async for response in house.decoder.Chat(whole)]
    assert list(events[0].started.prompt_token_ids)[-2:] == [5, 9]
    whole.add_generation_prompt = True
    error = await refusal(house.decoder.Chat(whole).read())
    assert (error.code, error.param) == ("invalid_request", "add_generation_prompt")
