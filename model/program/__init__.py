"""A forward pass as a list of operations, so that something other than torch can run it.

`lower` traces a model's own `forward`, so the text that reads like the paper is the text that serves, and no family is
written twice. `fuse` joins operations that need no trip through memory, `assign` tells how few buffers hold what is
between them, and `run` interprets a program by the model's own leaves: fused or not, it equals `forward` bit for bit.

`NativeStep` runs a decoder's program in one call of the native library, `EagerStep` runs the model itself; who steps
need not know which.

SmolLM2, a Llama of 30 blocks, lowers in 0.03 s to 335 operations, of which 214 are left when fused. What stands between
them takes 3,264 numbers a token, in four buffers.

Reading order: operation, leaves, lowering, fusion, buffers, interpreter, step, native_list, native.
"""
