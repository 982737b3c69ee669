"""Which device serves: `auto`, `cpu`, `cuda` or `cuda:N`."""

import torch

from model.errors import DeviceError


def resolve_device(name: str) -> torch.device:
    """The device of a setting; `auto` takes CUDA where there is one.

    Raises: DeviceError for an unknown name, or for CUDA that is not there, with the reason.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise DeviceError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N")
    if torch.version.cuda is None:
        raise DeviceError(f"device {name!r}: this build of torch ({torch.__version__}) has no CUDA")
    if not torch.cuda.is_available():
        raise DeviceError(f"device {name!r}: no NVIDIA driver or no device was found (try nvidia-smi)")
    number = int(index or 0)
    if number >= torch.cuda.device_count():
        raise DeviceError(f"device {name!r}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return torch.device("cuda", number)
