"""What computes, by the setting: the native library, torch in its place with a reason, or no start at all."""

from pathlib import Path

import pytest
import small_models
from structlog.testing import capture_logs

from model.errors import NativeLibraryError
from model.kernels.native.library import native_library
from services.common import cores
from services.common.settings import ConfigurationError, DecoderSettings
from services.decoder import runner as runner_module
from services.decoder.runner import Runner

WHY = "there is no native library: there is no C++ compiler"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.save(small_models.llama(), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NativeLibraryError(WHY)

    monkeypatch.setattr(runner_module, "native_library", refuse)


def settings(model: Path, /, **changes: object) -> DecoderSettings:
    chosen = {"model": model, "device": "cpu", "dtype": "float32", "block_size": 16, "num_cache_tokens": 400}
    return DecoderSettings(**{**chosen, **changes})


@pytest.mark.parametrize("kernel", ["auto", "native"])
def test_the_native_library_serves_where_it_can(folder: Path, kernel: str) -> None:
    assert Runner(settings(folder, kernel=kernel)).kernel == f"native {native_library().variant}"


def test_torch_serves_when_it_is_asked_for(folder: Path) -> None:
    with capture_logs() as logged:
        assert Runner(settings(folder, kernel="torch")).kernel == "portable"
    assert [each for each in logged if each["log_level"] == "warning"] == []


@pytest.mark.usefixtures("not_built")
def test_without_the_library_torch_serves_and_says_why(folder: Path) -> None:
    with capture_logs() as logged:
        assert Runner(settings(folder)).kernel == "portable"
    assert [each.get("reason") for each in logged if each["log_level"] == "warning"] == [WHY]


@pytest.mark.usefixtures("not_built")
def test_without_the_library_that_was_asked_for_there_is_no_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Runner(settings(folder, kernel="native"))
    assert str(caught.value) == f"JANUS_DECODER_KERNEL: {WHY}"
    monkeypatch.setenv("JANUS_KERNEL", "native")
    with pytest.raises(ConfigurationError) as caught:
        Runner(settings(folder))
    assert str(caught.value) == f"JANUS_KERNEL: {WHY}"


def test_what_the_library_has_not_is_told(folder: Path) -> None:
    """Pages of its attention hold tokens by sixteens."""
    with capture_logs() as logged:
        assert Runner(settings(folder, block_size=4)).kernel == "portable"
    [told] = [each for each in logged if each["log_level"] == "warning"]
    with pytest.raises(ConfigurationError) as caught:
        Runner(settings(folder, block_size=4, kernel="native"))
    assert str(caught.value) == f"JANUS_DECODER_KERNEL: {told['reason']}"


def test_its_threads_are_as_they_are_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "physical_cores", lambda: (0, 1))
    library = native_library()
    before = library.plan
    try:
        Runner(settings(folder))
        assert (library.plan.count, library.plan.cores) == (2, ())
        Runner(settings(folder, threads=3, pin_threads=True, awake_microseconds=7))
        assert (library.plan.count, library.plan.cores, library.plan.awake_microseconds) == (3, (0, 1, 0), 7)
    finally:
        library.use_threads(before)
