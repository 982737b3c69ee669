"""Writes a GGUF file as a folder that OpenVINO GenAI loads; run in the peers' environment.

    python openvino_convert.py MODEL.gguf FOLDER

It reads GGUF itself and saves what it made of it beside the file it was given.
"""

import os
import sys
from pathlib import Path

import openvino_genai


def main(model: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "model.gguf"
    os.link(model, link)
    try:
        openvino_genai.LLMPipeline(str(link), "CPU", enable_save_ov_model=True)
    finally:
        link.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
