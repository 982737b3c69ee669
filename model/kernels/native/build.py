"""The build of the native library: every .cpp file of this folder, and variant.cpp once for each instruction set.

It needs the standard library alone, because setup.py, an image and `make native` run it before anything is installed:

    python model/kernels/native/build.py            builds what changed; a warning of the compiler is an error
    python model/kernels/native/build.py --install  the same for users: a failure leaves its reason beside the sources

`CXX` names the compiler, else it is the first of g++, c++ and clang++.
"""

import contextlib
import fcntl
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
WORK = FOLDER.parents[2] / ".cache" / "native"
LIBRARY = "libjanus_native.so"
REASON = "not_built.txt"
"""Beside the library's place when there is none: why, in one line."""

FLAGS = ("-std=c++20", "-O3", "-g1", "-fPIC", "-pthread", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno")
"""Equal bytes for equal rows rest on them: nothing here may let the compiler reorder or contract arithmetic."""
WARNINGS = ("-Wall", "-Wextra", "-Werror")
# GCC takes the registers that its own AVX-512 header leaves undefined for a mistake.
_QUIET = ("-Wno-uninitialized", "-Wno-maybe-uninitialized")

_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni")
VARIANTS: dict[str, tuple[str, ...]] = {
    "avx512_bf16": (*_AVX512, "avx512bf16"),
    "avx512_vnni": _AVX512,
    "avx2_vnni": (*_AVX2, "avxvnni"),
    "avx2": _AVX2,
    "portable": (),
}
"""Each variant's instruction sets, the best variant first: what it is compiled with, and what a machine must have."""


class BuildError(Exception):
    """No library could be made; the text is one line that says why."""


@dataclass(frozen=True, slots=True)
class _Object:
    source: Path
    path: Path
    command: tuple[str, ...]

    def is_fresh(self) -> bool:
        """Made by this very command, begun after the last change of every file that it was made of."""
        try:
            is_same = self._record.read_text() == shlex.join(self.command)
            made_of = shlex.split(self._dependencies.read_text().replace("\\\n", " ").partition(":")[2])
            made = self.path.stat().st_mtime_ns
            return is_same and all(Path(each).stat().st_mtime_ns < made for each in made_of)
        except OSError:
            return False

    def compile(self, more_flags: Sequence[str]) -> None:
        self._record.unlink(missing_ok=True)
        outputs = ("-MMD", "-MF", str(self._dependencies), "-o", str(self.path))
        begun = time.time_ns()
        _run([*self.command, *more_flags, *outputs], f"compile {self.path.stem.replace('.', ' for ')}")
        os.utime(self.path, ns=(begun, begun))  # a file that was changed meanwhile is newer
        self._record.write_text(shlex.join(self.command))

    @property
    def _record(self) -> Path:
        return self.path.with_suffix(".command")

    @property
    def _dependencies(self) -> Path:
        return self.path.with_suffix(".d")


def build(target: Path | None = None, work: Path = WORK, *, flags: Sequence[str] = (), is_strict: bool = False) -> Path:
    """The library in the folder `target`; objects stay in `work`, so that the next build compiles what changed.

    Raises: BuildError.
    """
    target = target or FOLDER
    cxx = compiler()
    every = (*FLAGS, *flags)
    work.mkdir(parents=True, exist_ok=True)
    with _alone(work), ThreadPoolExecutor(_num_jobs()) as pool:
        compiled = _compiled_variants(cxx, pool)
        objects = list(_objects(work, cxx, every, compiled))
        stale = [each for each in objects if not each.is_fresh()]
        warnings = WARNINGS if is_strict else ()
        list(pool.map(lambda each: each.compile(warnings), stale))  # the longest, variants, first
        library = target / LIBRARY
        made = library.stat().st_mtime_ns if library.exists() else 0
        if stale or any(each.path.stat().st_mtime_ns > made for each in objects):
            target.mkdir(parents=True, exist_ok=True)
            new = library.with_suffix(f".{os.getpid()}.new")
            # A library that a process has loaded is replaced, never written over.
            _run([*cxx, *every, "-shared", "-o", str(new), *(str(each.path) for each in objects)], "link")
            new.replace(library)
    (target / REASON).unlink(missing_ok=True)
    return library


def install(target: Path | None = None, work: Path = WORK) -> str:
    """Builds, or leaves the reason in place of a library; one line that says which."""
    target = target or FOLDER
    try:
        return f"The native library is built: {build(target, work)}"
    except (BuildError, OSError) as error:
        target.mkdir(parents=True, exist_ok=True)
        (target / LIBRARY).unlink(missing_ok=True)
        (target / REASON).write_text(f"{error}\n")
        return f"The native library is NOT built, models will run through torch alone: {error}"


def sources() -> list[Path]:
    return sorted(FOLDER.glob("*.cpp"))


def headers() -> list[Path]:
    return sorted(FOLDER.glob("*.h"))


def _objects(work: Path, cxx: Sequence[str], flags: Sequence[str], variants: Sequence[str]) -> Iterator[_Object]:
    of_variants = FOLDER / "variant.cpp"
    for name in variants:
        own = (f"-DJANUS_VARIANT={name}", *(f"-m{each}" for each in VARIANTS[name]))
        quiet = _QUIET if "avx512f" in VARIANTS[name] else ()
        command = (*cxx, *flags, *own, *quiet, "-c", str(of_variants))
        yield _Object(of_variants, work / f"variant.{name}.o", command)
    for source in sources():
        if source != of_variants:
            # dispatch.cpp offers the variants by this list.
            own = (f"-DJANUS_VARIANTS={_offers(variants)}",) if source.name == "dispatch.cpp" else ()
            yield _Object(source, work / f"{source.stem}.o", (*cxx, *flags, *own, "-c", str(source)))


def _offers(variants: Iterable[str]) -> str:
    return " ".join(f"JANUS_OFFER({name}, {_is_supported(VARIANTS[name])})" for name in variants)


def _is_supported(instruction_sets: Iterable[str]) -> str:
    """In C++: whether the machine that runs has them, and its system saves their registers."""
    return " && ".join(f'__builtin_cpu_supports("{each}")' for each in instruction_sets) or "true"


def _compiled_variants(cxx: Sequence[str], pool: ThreadPoolExecutor) -> list[str]:
    """The variants for this kind of machine that the compiler knows."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ["portable"]
    is_known = pool.map(lambda name: _knows(cxx, name), VARIANTS)
    return [name for name, known in zip(VARIANTS, is_known, strict=True) if known]


def _knows(cxx: Sequence[str], variant: str) -> bool:
    command = [*cxx, *(f"-m{each}" for each in VARIANTS[variant]), "-fsyntax-only", "-x", "c++", "-"]
    program = f"int main() {{ return {_is_supported(VARIANTS[variant])}; }}"
    return subprocess.run(command, input=program, text=True, capture_output=True, check=False).returncode == 0


def compiler() -> list[str]:
    """The words that a command of the compiler begins with. Raises: BuildError."""
    named = os.environ.get("CXX")
    found = shlex.split(named) if named else next(([c] for c in ("g++", "c++", "clang++") if shutil.which(c)), None)
    if not found:
        raise BuildError("there is no C++ compiler (g++, c++ or clang++, or another that CXX names)")
    if not shutil.which(found[0]):
        raise BuildError(f"there is no C++ compiler {named}, which CXX names")
    return found


def _run(command: Sequence[str], what: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        print(result.stderr[:4000], file=sys.stderr)
        said = result.stderr.splitlines()
        first = next((line for line in said if "error" in line), said[0] if said else f"exit {result.returncode}")
        raise BuildError(f"{command[0]} could not {what}: {first.strip()}")


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    """One build at a time in a folder of objects."""
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _num_jobs() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: Sequence[str]) -> int:
    if arguments == ["--install"]:
        print(install())
        return 0
    if arguments:
        print("usage: build.py [--install]", file=sys.stderr)
        return 2
    try:
        print(build(is_strict=True))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
