"""A loaded decoder as the servicers see it: what it is called, what it can do, and how a request enters its engine."""

import asyncio
import time
from dataclasses import dataclass

from janus.v1 import models_pb2
from services.common.metrics import DecoderMetrics
from services.common.settings import ConfigurationError, DecoderSettings, setting_of
from services.decoder.block_manager import BlockManager
from services.decoder.chat import ChatTemplate
from services.decoder.choice import Choice
from services.decoder.engine import Engine
from services.decoder.generation import Generation
from services.decoder.options import COMPLETION_MAX_TOKENS, Capacity, Defaults, Plan
from services.decoder.runner import Runner
from services.decoder.scheduler import Scheduler
from services.decoder.sequence import Limits, Sequence
from services.decoder.text_stream import TextStream

# A queue in tokens: what the waiting requests may hold together, in caches.
_QUEUE_CACHES = 4


@dataclass(frozen=True)
class DecoderWorker:
    """One model, one engine."""

    model_id: str
    created_unix_seconds: int
    runner: Runner
    engine: Engine
    template: ChatTemplate
    capacity: Capacity
    defaults: Defaults

    @classmethod
    async def start(cls, settings: DecoderSettings, metrics: DecoderMetrics) -> "DecoderWorker":
        """Loads the model, off the event loop, and starts its engine; takes seconds. Raises: ConfigurationError."""
        return await asyncio.to_thread(cls.load, settings, metrics)

    @classmethod
    def load(cls, settings: DecoderSettings, metrics: DecoderMetrics) -> "DecoderWorker":
        """Raises: ConfigurationError."""
        runner = Runner(settings)
        try:
            template = ChatTemplate(runner.chat_template, bos_token=runner.bos_token, eos_token=runner.eos_token)
        except ValueError as error:
            raise ConfigurationError(f"{setting_of(settings, 'model')}: {settings.model}: {error}") from error
        blocks = BlockManager(runner.num_blocks, runner.block_size, is_caching=settings.prefix_cache)
        cache_tokens = runner.num_blocks * runner.block_size
        scheduler = Scheduler(
            blocks,
            max_batch_tokens=settings.max_batch_tokens,
            max_running=settings.max_running,
            max_waiting=settings.max_queue_requests,
            max_waiting_tokens=_QUEUE_CACHES * cache_tokens,
        )
        engine = Engine(scheduler, runner, metrics, settings.model_id, step_seconds=settings.step_seconds)
        engine.start()
        metrics.set_build(device=runner.device, kernel=runner.kernel, dtype=runner.dtype)
        metrics.model_info.labels(settings.model_id, runner.digest, runner.dtype).set(1)
        metrics.startup_phase_seconds.labels("load").set(runner.load_seconds)
        metrics.startup_phase_seconds.labels("warm_up").set(runner.warm_up_seconds)
        return cls(
            model_id=settings.model_id,
            created_unix_seconds=int(time.time()),
            runner=runner,
            engine=engine,
            template=template,
            capacity=Capacity(runner.max_context_tokens, cache_tokens, runner.vocabulary_size),
            defaults=_defaults(settings, runner),
        )

    def summary(self) -> dict[str, object]:
        return {
            "model": self.model_id,
            "device": self.runner.device,
            "dtype": self.runner.dtype,
            "cache_tokens": self.capacity.max_cache_tokens,
            "load_seconds": round(self.runner.load_seconds, 2),
        }

    async def run(self) -> None:
        """The engine works in a thread of its own; this returns when that has ended, which it should not."""
        await asyncio.to_thread(self.engine.join)

    def drain(self) -> None:
        self.engine.drain()

    async def close(self) -> None:
        await asyncio.to_thread(self.engine.stop)

    def submit(
        self, prompt_ids: list[int], plan: Plan, deadline: float | None, *, cache_namespace: str, priority: int
    ) -> Generation:
        """Puts a request into the engine; read its events, and cancel it when nobody does."""
        limits = Limits(plan.max_tokens, plan.min_tokens, plan.stop_ids, deadline)
        params_of_all = self.runner.sampling_params(
            temperature=plan.temperature,
            top_p=plan.top_p,
            top_k=plan.top_k,
            min_p=plan.min_p,
            repetition_penalty=plan.repetition_penalty,
            presence_penalty=plan.presence_penalty,
            frequency_penalty=plan.frequency_penalty,
            logit_bias=plan.logit_bias,
            allowed_token_ids=plan.allowed_token_ids,
            top_logprobs=plan.top_logprobs,
            seed=plan.seed,
            min_tokens=plan.min_tokens,
            stop_ids=sorted(plan.stop_ids),
        )
        choices = []
        for index, given in enumerate(plan.output_token_ids):
            params = self.runner.of_choice(params_of_all, index)
            sequence = Sequence([*prompt_ids, *given], len(prompt_ids), limits, params, cache_namespace, priority)
            text = TextStream(self.runner.new_detokenizer(), plan.stop_strings)
            choices.append(Choice(sequence, text, index))
        generation = Generation(choices)
        self.engine.submit(generation)
        return generation

    def describe(self, *, is_draining: bool) -> models_pb2.Model:
        """What the model list says of it."""
        state = models_pb2.MODEL_STATE_DRAINING if is_draining else models_pb2.MODEL_STATE_READY
        tasks = ["chat", "completions"] if self.template.exists else ["completions"]
        max_tokens = self.defaults.max_tokens if self.template.exists else COMPLETION_MAX_TOKENS
        return models_pb2.Model(
            id=self.model_id,
            created_unix_seconds=self.created_unix_seconds,
            tasks=tasks,
            default_tasks=tasks,
            max_input_tokens=self.capacity.max_total_tokens,
            dtype=self.runner.dtype,
            device=self.runner.device,
            kernel=self.runner.kernel,
            digest=self.runner.digest,
            state=state,
            vocabulary_size=self.capacity.vocabulary_size,
            generation_defaults=models_pb2.GenerationDefaults(
                max_tokens=max_tokens,
                temperature=self.defaults.temperature,
                top_p=self.defaults.top_p,
                top_k=self.defaults.top_k,
            ),
        )


def _defaults(settings: DecoderSettings, runner: Runner) -> Defaults:
    """The checkpoint's generation config first, then the settings."""
    config = runner.generation_config
    is_greedy = config.get("do_sample") is False
    temperature = 0.0 if is_greedy and "temperature" not in config else config.get("temperature", settings.temperature)
    return Defaults(
        max_tokens=settings.default_max_tokens,
        temperature=float(temperature),
        top_p=float(config.get("top_p", settings.top_p)),
        top_k=int(config.get("top_k", 0) or 0),
    )
