// What a variant offers: the same computations for one instruction set. Every function is one thread's share.
#pragma once

#include <cstdint>

#include "attention.h"
#include "operations.h"
#include "rows.h"
#include "sampling.h"
#include "weights.h"

namespace janus {

struct Kernels {
    const char* name;

    // A tile of 32 outputs of a product, for rows [begin, end) of its input. With a gate, a tile of the gate's and the same
    // of what it gates. The tile leaves in every representation that `output` has room for.
    void (*product)(const Product&, const Rows& input, int tile, int begin, int end, const Rows& output);

    // The same tile for the likeliest alone: raises best[row] to (score, output) where the tile has a better one.
    void (*likeliest)(const Product&, const Rows& input, int tile, int begin, int end, Likeliest* best);

    // Row `from` of the input, normalised, to row `to` of the output.
    void (*norm)(const Norm&, const Rows& input, int from, const Rows& output, int to);

    // The representations of columns [begin, end) of a row that has its floats. Both lie on borders of groups, or the end is
    // the row's.
    void (*represent)(const Rows&, int row, int begin, int end);

    // Row `index` of a packed table.
    void (*table_row)(const Matrix&, int64_t index, float* row);

    // Turns the q and k parts of a row.
    void (*rotate)(const Rotation&, int64_t position, float* row);

    // Keys and values of heads [begin, end) of a token, side by side.
    void (*store)(const AttentionSpec&, const LayerPages&, int64_t slot, int begin, int end, const float* key,
                  const float* value);
    void (*attend)(const AttentionSpec&, const LayerPages&, const AttentionUnit&, const AttentionBatch&);
    void (*merge)(const AttentionSpec&, const AttentionBatch&, int row, int head);

    // A token from a row of so many scores.
    Drawn (*sample)(const SampledRow&, int count, const SamplerRoom&);
};

// By name, or the best for this machine. Null for a name that isn't one, or that this machine can't run.
const Kernels* kernels_named(const char* name);
const Kernels* best_kernels();

}  // namespace janus
