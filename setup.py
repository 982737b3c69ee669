"""The package's own build of the native library; everything else of the package stands in pyproject.toml."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
FOLDER = Path("model", "kernels", "native")


def native_build() -> ModuleType:
    """model/kernels/native/build.py alone: the package around it wants torch."""
    spec = importlib.util.spec_from_file_location("janus_native_build", ROOT / FOLDER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildNative(build_ext):
    """Compiles the library into the place where the package looks for it; without a compiler the rest is installed."""

    def run(self) -> None:
        folder = FOLDER if self.inplace else Path(self.build_lib, FOLDER)
        work = build.WORK if self.inplace else Path(self.build_temp)
        print(build.install(folder.resolve(), work.resolve()), file=sys.stderr)

    def get_outputs(self) -> list[str]:
        return [str(Path(self.build_lib, FOLDER, build.LIBRARY))]

    def get_output_mapping(self) -> dict[str, str]:
        return {self.get_outputs()[0]: str(FOLDER / build.LIBRARY)} if self.inplace else {}


class AnyPython(bdist_wheel):
    """ctypes loads the library, so it is for a kind of machine and for every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


build = native_build()
library = Extension(
    "model.kernels.native.library",
    sources=[str(path.relative_to(ROOT)) for path in build.sources()],
    depends=[str(path.relative_to(ROOT)) for path in build.headers()],
)
setup(ext_modules=[library], cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPython})
