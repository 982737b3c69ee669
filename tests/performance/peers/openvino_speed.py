"""OpenVINO GenAI, loaded once and measured whenever it is asked; run in the peers' environment.

    python openvino_speed.py FOLDER THREADS PRECISION

PRECISION: that of its arithmetic, as OpenVINO names it; `bf16` is what it chooses where the machine has it.
Each line of standard input is `[batch, prompt_tokens, num_steps]`; the answer is a line with the tokens a second of the
steps, the first tokens left out.
"""

import json
import sys

import numpy
import openvino
import openvino_genai


def main(folder: str, threads: int, precision: str) -> None:
    # Everything else as it is: it chooses a cache of 8 bits and activations of 8 bits in groups by itself.
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    pipeline = openvino_genai.LLMPipeline(folder, "CPU", **settings)
    chance = numpy.random.default_rng(0)
    for line in sys.stdin:
        batch, prompt_tokens, num_steps = json.loads(line)
        ids = chance.integers(0, 49152, (batch, prompt_tokens))
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = num_steps + 1
        config.ignore_eos = True
        config.do_sample = False
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
        metrics = pipeline.generate(inputs, config).perf_metrics
        assert metrics.get_num_generated_tokens() == batch * (num_steps + 1)
        print(json.dumps(metrics.get_throughput().mean), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
