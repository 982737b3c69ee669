"""What a decoder worker makes of its checkpoint: defaults, ends, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import small_models

from services.common.metrics import DecoderMetrics
from services.common.settings import ConfigurationError, DecoderSettings
from services.decoder.worker import DecoderWorker


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_models.save(small_models.llama(), tmp_path)


def loaded(folder: Path, **generation_config: Any) -> DecoderWorker:
    (folder / "generation_config.json").write_text(json.dumps(generation_config))
    settings = DecoderSettings(model=folder, device="cpu", num_cache_tokens=64)
    return DecoderWorker.load(settings, DecoderMetrics())


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"temperature": "x"}, "temperature is 'x', not a number from 0 to 2"),
        ({"temperature": 3}, "temperature is 3, not a number from 0 to 2"),
        ({"top_p": 0}, "top_p is 0, not a number above 0 to 1"),
        ({"top_k": -1}, "top_k is -1, not a whole number"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>', not a token"),
        ({"eos_token_id": [2, [3]]}, "eos_token_id is .*, not a token"),
    ],
)
def test_a_generation_config_that_makes_no_sense_is_refused(folder: Path, named: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^JANUS_DECODER_MODEL: .*{message}"):
        loaded(folder, **named)


@pytest.mark.parametrize(
    ("template", "tasks", "most"), [("", ["completions"], 16), ("{{ 1 }}", ["chat", "completions"], 1024)]
)
async def test_the_model_list_says_how_many_tokens_an_answer_has(
    folder: Path, template: str, tasks: list[str], most: int
) -> None:
    if template:
        (folder / "chat_template.jinja").write_text(template)
    worker = loaded(folder)
    try:
        told = worker.describe(is_draining=False)
        assert (list(told.tasks), told.generation_defaults.max_tokens) == (tasks, most)
    finally:
        await worker.close()


async def test_what_the_checkpoint_names_holds_and_null_names_nothing(folder: Path) -> None:
    worker = loaded(folder, temperature=None, top_p=0.5, top_k=None, do_sample=False, eos_token_id=[2, 5])
    try:
        defaults = worker.defaults
        assert (defaults.temperature, defaults.top_p, defaults.top_k) == (0.0, 0.5, 0)
        assert worker.runner.stop_ids == {2, 5}
    finally:
        await worker.close()
