"""The committed stubs are what the .proto files generate."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_stubs_are_fresh(tmp_path: Path) -> None:
    copy = tmp_path / "tree"
    (copy / "proto/janus/v1").mkdir(parents=True)
    committed = ROOT / "proto/janus/v1"
    for source in committed.glob("*.proto"):
        (copy / "proto/janus/v1" / source.name).write_bytes(source.read_bytes())
    (copy / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    # An environment that is already made: the copy only borrows it.
    (copy / ".venv").symlink_to(ROOT / ".venv")
    made = ["-o", ".venv/.dev", "-o", ".venv/.serve"]
    subprocess.run(["make", *made, "proto"], cwd=copy, check=True, capture_output=True, timeout=100)
    generated = {path.name: path.read_bytes() for path in (copy / "proto/janus/v1").glob("*_pb2*")}
    stubs = {path.name: path.read_bytes() for path in committed.glob("*_pb2*")}
    assert generated.keys() == stubs.keys()
    assert [name for name in stubs if stubs[name] != generated[name]] == [], "run `make proto`"
