"""Stand-ins for images that can't be pulled here: `python:3.11-slim-bookworm` and Prometheus.

The first is Debian's minimum with this machine's CPython in /usr/local, its certificates and its pip configuration, so
that the unmodified Dockerfiles are built; the second is Debian's own prometheus. Nothing of them outlives the test.
"""

import configparser
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# What CPython's extension modules load.
LIBRARIES = ("ca-certificates", "libbz2-1.0", "libexpat1", "libffi8", "liblzma5", "libsqlite3-0", "libssl3", "zlib1g")
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
NOT_IN_THE_IMAGE = re.compile(r"/(test|tests|idlelib|tkinter|turtledemo|lib2to3|__pycache__)(/|$)|\.a$")
OF_PIP = re.compile(r"/site-packages/(pip|setuptools|distutils-precedence|_distutils_hack)")


def python_root(folder: Path) -> Path:
    """A tar file with the root file system for the Dockerfiles."""
    python, configuration = folder / "python.tar", folder / "pip.conf"
    told, folders_of_wheels = _pip_configuration()
    with configuration.open("w") as file:
        told.write(file)
    _pack_python(python)
    hooks = [
        f"tar-in {python} /usr/local",
        f"upload {configuration} /etc/pip.conf",
        f"upload {CERTIFICATES} {CERTIFICATES}",
        'chroot "$1" ldconfig',
    ]
    for each in folders_of_wheels:
        hooks += [f'mkdir -p "$1{each.parent}"', f"copy-in {each} {each.parent}"]
    root = _debian(folder / "python-root.tar", LIBRARIES, hooks)
    python.unlink()
    return root


def prometheus_root(folder: Path) -> Path:
    """A tar file with Prometheus and the wget that its health check calls."""
    hooks = ['mkdir "$1/prometheus"', 'chown 65534:65534 "$1/prometheus"']
    return _debian(folder / "prometheus-root.tar", ("prometheus", "wget"), hooks)


def _debian(target: Path, packages: Sequence[str], hooks: Sequence[str]) -> Path:
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
    command += [f"--customize-hook={hook}" for hook in hooks]
    subprocess.run([*command, "bookworm", str(target)], check=True)
    return target


def _pack_python(target: Path) -> None:
    """CPython as it would lie under /usr/local: interpreter, library, standard library and pip."""
    prefix = Path(sys.base_prefix)

    def keep(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        is_of_others = re.search(r"/site-packages/.", member.name) and not OF_PIP.search(member.name)
        if is_of_others or NOT_IN_THE_IMAGE.search(member.name):
            return None
        member.uid = member.gid = 0
        return member

    with tarfile.open(target, "w") as tar:
        for path in _python_files(prefix):
            tar.add(path, f"./{path.relative_to(prefix)}", filter=keep)
        link = tarfile.TarInfo("./bin/python")
        link.type, link.linkname = tarfile.SYMTYPE, PYTHON
        tar.addfile(link)


def _python_files(prefix: Path) -> Iterator[Path]:
    yield prefix / "bin" / "python3"
    yield prefix / "bin" / PYTHON
    yield prefix / "lib" / PYTHON
    yield from (prefix / "lib").glob("libpython3*.so*")


def _pip_configuration() -> tuple[configparser.RawConfigParser, list[Path]]:
    """What pip is told on this machine, as one file, and the folders of wheels that it is told of."""
    pip = [f"{sys.base_prefix}/bin/{PYTHON}", "-m", "pip"]
    listed = subprocess.run([*pip, "config", "list"], check=True, capture_output=True, text=True).stdout
    told: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        told.setdefault(name.rpartition(".")[2], value.strip("'\""))
    configuration = configparser.RawConfigParser()
    configuration["global"] = {key: told[key] for key in ("index-url", "find-links", "cert") if key in told}
    folders = [Path(each.removeprefix("file://")) for each in told.get("find-links", "").split()]
    return configuration, [folder for folder in folders if folder.is_dir()]
