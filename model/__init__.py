"""The Transformer, from attention up, on packed tokens.

A batch is `[T]` tokens and their boundaries: no padding, no batch dimension. One legend names every axis:

    T  query tokens of the batch      D  model width           P  cache blocks
    U  key and value tokens           H  query heads           B  tokens a block
    S  sequences                      G  key/value heads       M  blocks a sequence
    L  logit rows                     E  width of a head       A  adapters
    V  vocabulary                     F  feed-forward width    R  rank of an adapter
    J  distances between two tokens of a sequence, or buckets of distances

A tensor's name ends in its axes (`x_TD`, `block_table_SM`); X stands for a row that holds several parts side by side.

Reading order: attention, kernels.portable, metadata, kv_cache, linear, feed_forward, normalization, embeddings, rotary,
relative, disentangled, convolution, block, encoder, decoder, encoder_decoder, heads, sampling, families, program.
`README.md` maps the paper onto these files.

Only leaves compute (`program/leaves.py` has them all: Linear, Embedding, the norms, Attend, Gate and so on) and `+`;
everything above them is straight-line composition, so that a forward pass can be traced into a list of operations.
"""
