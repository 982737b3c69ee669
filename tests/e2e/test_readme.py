"""Every example of the README, run as a reader would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from running_janus import ROOT, Stack

README = (ROOT / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"<!-- run(?:: (\w+))? -->\n```(\w+)\n(.*?)```", README, flags=re.DOTALL)
EXPECTED = {
    "/v1/classify": ("positive", "negative"),
    "/v1/question-answering": ("she missed the smell of paper", '"token_str":"teeth"'),
    "/v1/chat/completions": ("Par", "is", "data: [DONE]"),
    "OpenAI(": ("Paris", "2 384"),
    "InferenceClient(": ("positive",),
    "/v1/attention": ('"deep"', '"learning"', '"edges"'),
    "DecoderServiceStub": ("Paris",),
    "grpcurl": ('"text"', "Par", "FINISH_REASON"),
    "janus classify": ("positive", "all-MiniLM-L6-v2", "SmolLM2-135M-Instruct"),
}


@pytest.mark.parametrize(("needs", "language", "code"), EXAMPLES, ids=[code[:30] for _, _, code in EXAMPLES])
def test_example(stack: Stack, needs: str, language: str, code: str, tmp_path: Path) -> None:
    here = code.replace("127.0.0.1:8000", stack.url.removeprefix("http://")).replace("127.0.0.1:50051", stack.grpc)
    binaries = Path(sys.executable).parent
    environment = os.environ | {
        "JANUS_GATEWAY_GRPC_PORT": str(stack.ports["GATEWAY_GRPC_PORT"]),
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, "-c", here] if language == "python" else ["bash", "-euo", "pipefail", "-c", here]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    marks = next(words for mark, words in EXPECTED.items() if mark in code)
    assert [word for word in marks if word not in done.stdout] == [], done.stdout


def test_every_example_is_expected() -> None:
    assert len(EXAMPLES) == len(EXPECTED)


def test_the_makefile_has_what_the_readme_names() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets
