"""Writes examples, one JSON object a line: context, question, answer and where it starts."""

import argparse
import json
import random
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from model.training.questions.examples import written_examples
from model.training.questions.frame import read_frames
from model.training.questions.pages import page_examples, sentence_examples

_SENTENCES = Path(__file__).parents[1] / "data" / "everyday.txt"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m model.training.questions", description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--passages", type=int, default=18, help="how often each frame is filled")
    parser.add_argument("--language", type=Path, help="the folder of a spaCy pipeline for English: more examples")
    parser.add_argument("--texts", type=int, default=1700, help="with a language: texts of simple sentences")
    parser.add_argument("--pages", type=Path, help="with a language: a MediaWiki dump (.xml.bz2)")
    parser.add_argument("--paragraphs", type=int, default=800, help="with pages: how many paragraphs")
    parser.add_argument("--seed", type=int, default=21)
    arguments = parser.parse_args()
    frames = read_frames(Path(__file__).with_name("frames"))
    examples = written_examples(frames, arguments.passages, arguments.seed)
    if arguments.language is not None:
        # No dependency of the project: whoever makes the examples installs it (DATA.md).
        language = import_module("spacy").load(arguments.language)
        examples += sentence_examples(_SENTENCES, arguments.texts, language, arguments.seed)
        if arguments.pages is not None:
            examples += page_examples(arguments.pages, arguments.paragraphs, language, arguments.seed)
        random.Random(arguments.seed).shuffle(examples)
    lines = [json.dumps(asdict(example), ensure_ascii=False) + "\n" for example in examples]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text("".join(lines), "utf-8")
    print(f"{len(lines)} examples, {len(frames)} frames")


if __name__ == "__main__":
    main()
