"""Which device a setting names, and why it can't be had."""

import pytest
import torch

from model.device import resolve_device
from model.errors import DeviceError


def test_a_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "", "cpu:0"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(DeviceError, match="use auto, cpu, cuda or cuda:N"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("version", "is_available", "count", "name", "reason"),
    [
        (None, False, 0, "cuda", "has no CUDA"),
        ("13.0", False, 0, "cuda:0", "no NVIDIA driver"),
        ("13.0", True, 2, "cuda:2", "there are 2 CUDA devices"),
    ],
)
def test_a_refusal_says_why(
    monkeypatch: pytest.MonkeyPatch, version: str | None, is_available: bool, count: int, name: str, reason: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(DeviceError, match=reason):
        resolve_device(name)
    assert resolve_device("auto").type == ("cuda" if is_available else "cpu")
