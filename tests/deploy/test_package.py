"""The package as others get it: a wheel with the native library, or with the reason why not, from sources alone."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from model.kernels.native import build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NATIVE = "model/kernels/native"
BUILD = "import sys, setuptools.build_meta as backend; print(backend.{}(sys.argv[1]))"


def made(kind: str, folder: Path, target: Path, **environment: str) -> Path:
    """What the package's build makes of a folder of sources."""
    command = [sys.executable, "-c", BUILD.format(f"build_{kind}"), str(target)]
    result = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return target / result.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sources(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked archive of sources, made of a clean copy of the tree."""
    folder = tmp_path_factory.mktemp("package")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        if name and (repository / name).is_file():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, folder / "tree" / name)
    archive = made("sdist", folder / "tree", folder)
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    [unpacked] = (folder / "unpacked").iterdir()
    return unpacked


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name.removeprefix(f"{NATIVE}/") for name in archive.namelist() if name.startswith(NATIVE)}


def test_a_wheel_has_the_library(sources: Path, tmp_path: Path) -> None:
    wheel = made("wheel", sources, tmp_path)
    assert wheel.name.split("-", 2)[2].startswith("py3-none-linux"), "one wheel for every Python"
    assert build.LIBRARY in names_in(wheel)
    assert build.REASON not in names_in(wheel)
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(f"{NATIVE}/{build.LIBRARY}", tmp_path)
    shown = subprocess.run(
        [sys.executable, "-c", "from model.kernels.native.library import native_library as n; print(n().variant)"],
        env=os.environ | {"JANUS_NATIVE_LIBRARY": str(tmp_path / NATIVE / build.LIBRARY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() in build.VARIANTS


def test_without_a_compiler_a_wheel_has_the_reason(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sources"
    shutil.copytree(sources, folder, ignore=shutil.ignore_patterns("build"))
    wheel = made("wheel", folder, tmp_path, CXX="no-such-compiler")
    assert build.LIBRARY not in names_in(wheel)
    with zipfile.ZipFile(wheel) as archive:
        reason = archive.read(f"{NATIVE}/{build.REASON}").decode()
    assert reason == "there is no C++ compiler no-such-compiler, which CXX names\n"
