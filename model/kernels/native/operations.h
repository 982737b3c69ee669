// What a step is made of: operations on rows of values, each with its weights. No family, no network, no request.
#pragma once

#include <cstdint>

#include "rows.h"
#include "weights.h"

namespace janus {

enum class Activation : int32_t { none = 0, gelu = 1, gelu_tanh = 2, relu = 3, silu = 4, tanh = 5 };

// y = activation(W x + bias) + addend; W is one matrix after another. With a gate, the first half of the outputs goes
// through the activation and is multiplied by the second half: two matrices of as many outputs.
struct Product {
    const Matrix* segments;
    int32_t num_segments;
    const float* bias;    // [all outputs] or null
    const float* addend;  // [rows, width of the output] or null
    Activation activation;
    bool is_gated;

    int num_tiles() const {
        if (is_gated) return segments[0].num_tiles();
        int tiles = 0;
        for (int s = 0; s < num_segments; ++s) tiles += segments[s].num_tiles();
        return tiles;
    }
};

// The best output of a row so far; of equal scores the first.
struct Likeliest {
    float score;
    int32_t output;
};

// Layer norm, or RMS norm, which takes no mean off.
struct Norm {
    const float* weight;
    const float* bias;  // or null
    float epsilon;
    bool takes_mean;
};

// cos and sin of position * frequency: [positions, head_width / 2] each. Feature i of a head turns with i + head_width / 2.
struct Rotation {
    const float* cosines;
    const float* sines;
    int32_t num_heads;  // of q and k together, from the row's start
    int32_t head_width;
};

}  // namespace janus
