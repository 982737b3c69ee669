"""Writes examples, one JSON object a line: context, question, answer and where it starts."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from model.training.questions.examples import written_examples
from model.training.questions.frame import read_frames


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m model.training.questions", description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--passages", type=int, default=60, help="how often each frame is filled")
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    frames = read_frames(Path(__file__).with_name("frames"))
    examples = written_examples(frames, arguments.passages, arguments.seed)
    lines = [json.dumps(asdict(example), ensure_ascii=False) + "\n" for example in examples]
    arguments.output.write_text("".join(lines), "utf-8")
    print(f"{len(lines)} examples from {len(frames)} frames")


if __name__ == "__main__":
    main()
