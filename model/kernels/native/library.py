"""The native library: loaded once a process, with one variant and one set of threads for all who call it.

For tests and for measuring, `JANUS_NATIVE_LIBRARY` names another file than the one beside this module, and
`JANUS_KERNEL_VARIANT` another variant than the best that this machine can run.
"""

import ctypes
import functools
import os
import threading
from ctypes import c_char_p, c_int32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import NativeLibraryError
from model.kernels.native import build


@dataclass(frozen=True, slots=True)
class ThreadPlan:
    """How many threads run a step, the caller among them, where they run and how they wait.

    With `cores`, one for each, every thread but the caller stays on its own. A thread that waits for the others stays
    awake for `awake_microseconds`, then it sleeps.
    """

    count: int
    cores: tuple[int, ...] = ()
    awake_microseconds: int = 100


class NativeLibrary:
    """The loaded library. Raises: NativeLibraryError, with the reason, where it can't be used here."""

    def __init__(self, path: Path, variant: str = "") -> None:
        self.path = path
        self.functions = _load(path)
        """By their names in C; pointers are passed as they are, so that the GIL is free during a call."""
        self._declare()
        names = self.kernel_names()
        if variant and variant not in names:
            raise NativeLibraryError(f"kernel variant {variant!r}: this machine can run {', '.join(names)}")
        self.variant = variant or names[0]
        self.plan = ThreadPlan(len(os.sched_getaffinity(0)))
        self._threads: int | None = None
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forget_threads)

    def kernel_names(self) -> list[str]:
        """The variants that this machine can run, the best first."""
        names: bytes = self.functions.janus_kernel_names()
        return names.decode().split()

    @property
    def kernels(self) -> int:
        """The chosen variant, for C."""
        return int(self.functions.janus_kernels(self.variant.encode()))

    def use_threads(self, plan: ThreadPlan) -> None:
        """How many threads there are from now on. No step may be running."""
        with self._lock:
            if plan != self.plan and self._threads is not None:
                self.functions.janus_threads_free(self._threads)
                self._threads = None
            self.plan = plan

    @property
    def threads(self) -> int:
        """The threads of the process, for C; made on first use."""
        with self._lock:
            if self._threads is None:
                plan = self.plan
                assert len(plan.cores) in (0, plan.count)
                cores = (c_int32 * plan.count)(*plan.cores) if plan.cores else None
                self._threads = self.functions.janus_threads_new(plan.count, cores, plan.awake_microseconds)
                if not self._threads:
                    raise NativeLibraryError(f"the system has no {plan.count} threads for a step")
            return self._threads

    @property
    def num_threads(self) -> int:
        return self.plan.count

    def new_program(self, operations: ctypes.Array[Any], values: ctypes.Array[Any]) -> int:
        """A program of the library's; what its structures point to must live as long. Raises: NativeLibraryError."""
        program = self.functions.janus_program_new(
            self.variant.encode(), operations, len(operations), values, len(values)
        )
        if not program:
            raise NativeLibraryError("no memory for a program")
        return int(program)

    def free_program(self, program: int) -> None:
        self.functions.janus_program_free(program)

    def run_program(self, program: int, batch: ctypes.Structure) -> int:
        """Runs a step on all threads; 0, or the library's number for what was wrong. Mutates: what it points to."""
        return int(self.functions.janus_program_run(program, self.threads, ctypes.byref(batch)))

    def _declare(self) -> None:
        declarations: dict[str, tuple[Any, ...]] = {
            "janus_kernel_names": (c_char_p,),
            "janus_kernels": (c_void_p, c_char_p),
            "janus_threads_new": (c_void_p, c_int32, c_void_p, c_int32),
            "janus_threads_free": (None, c_void_p),
            "janus_program_new": (c_void_p, c_char_p, c_void_p, c_int32, c_void_p, c_int32),
            "janus_program_free": (None, c_void_p),
            "janus_program_run": (c_int32, c_void_p, c_void_p, c_void_p),
        }
        for name, (result, *arguments) in declarations.items():
            self.declare(name, result, *arguments)

    def declare(self, name: str, result: Any, *arguments: Any) -> None:
        """Says what types a function has. Raises: NativeLibraryError where the library is older than its caller."""
        try:
            function = getattr(self.functions, name)
        except AttributeError:
            raise NativeLibraryError(f"{self.path} has no {name}: build it again with `make native`") from None
        function.restype, function.argtypes = result, arguments

    def _forget_threads(self) -> None:
        # A child of fork has none of its parent's threads.
        self._threads = None
        self._lock = threading.Lock()


@functools.cache
def native_library() -> NativeLibrary:
    """The library of this process, loaded on first use. Raises: NativeLibraryError, with the reason."""
    named = os.environ.get("JANUS_NATIVE_LIBRARY")
    path = Path(named) if named else build.FOLDER / build.LIBRARY
    return NativeLibrary(path, os.environ.get("JANUS_KERNEL_VARIANT", ""))


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        if path.exists():
            raise NativeLibraryError(f"the native library can't be loaded: {error}") from error
    reason = path.with_name(build.REASON)
    why = reason.read_text("utf-8").strip() if reason.exists() else "`make native` builds it"
    raise NativeLibraryError(f"there is no native library {path}: {why}")
