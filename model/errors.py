"""What can go wrong with a model. The runners map these to the one error table.

ModelError
├── CheckpointError             a checkpoint that is missing, broken, or not what its config says
│   └── UnsupportedArchitecture
├── CannotLower                 a model that is no list of operations; it runs through torch
├── NativeLibraryError          the native library is not there, or not for this machine; models run through torch
├── StepError                   a step of a decoder that could not be run, or gave no numbers
└── DeviceError                 the device that was asked for is not there
"""


class ModelError(Exception):
    """A failure of the model's own, in words that a user can act on."""


class CheckpointError(ModelError):
    pass


class UnsupportedArchitecture(CheckpointError):
    pass


class CannotLower(ModelError):
    pass


class NativeLibraryError(ModelError):
    pass


class StepError(ModelError):
    pass


class DeviceError(ModelError):
    pass
