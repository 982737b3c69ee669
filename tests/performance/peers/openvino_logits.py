"""What OpenVINO says after each token of a text, each computed in a step of its own; run in the peers' environment.

    python openvino_logits.py FOLDER TOKEN_IDS.npy LOGITS.npy THREADS PRECISION

Shape: ids `[T]` -> logits `[T, V]`. The settings are those of openvino_speed.py.
"""

import sys

import numpy
import openvino


def main(folder: str, ids_path: str, logits_path: str, threads: int, precision: str) -> None:
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    model = openvino.Core().compile_model(f"{folder}/openvino_model.xml", "CPU", settings)
    request = model.create_infer_request()
    logits = []
    for position, token in enumerate(numpy.load(ids_path).tolist()):
        values = {
            "input_ids": [[token]],
            "attention_mask": [[1] * (position + 1)],
            "position_ids": [[position]],
        }
        inputs = {name: numpy.array(value, numpy.int64) for name, value in values.items()}
        inputs["beam_idx"] = numpy.zeros(1, numpy.int32)
        logits.append(request.infer(inputs)["logits"][0, -1].astype(numpy.float32))
    numpy.save(logits_path, numpy.stack(logits))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
