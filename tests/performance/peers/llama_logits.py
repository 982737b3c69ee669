"""What llama.cpp says after each token of a text, each computed in a step of its own; run in the peers' environment.

    python llama_logits.py MODEL TOKEN_IDS.npy LOGITS.npy THREADS

Shape: ids `[T]` -> logits `[T, V]`. LLAMA_CPP_LIB_PATH and PYTHONPATH lead to the library and to its declarations.
"""

import sys

import numpy
from llama_cpp import llama_cpp as llama


def main(model_path: str, ids_path: str, logits_path: str, threads: int) -> None:
    ids = numpy.load(ids_path)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(model_path.encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx = len(ids)
    params.n_threads = params.n_threads_batch = threads
    context = llama.llama_init_from_model(model, params)
    num_entries = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    logits = numpy.empty((len(ids), num_entries), numpy.float32)
    batch = llama.llama_batch_init(1, 0, 1)
    for position, token in enumerate(ids.tolist()):
        batch.n_tokens = 1
        batch.token[0], batch.pos[0], batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = token, position, 1, 0, 1
        if llama.llama_decode(context, batch):
            raise SystemExit(f"llama.cpp could not decode token {position}")
        logits[position] = numpy.ctypeslib.as_array(llama.llama_get_logits(context), (num_entries,))
    numpy.save(logits_path, logits)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
