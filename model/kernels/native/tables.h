// Rows of tables: embeddings out of packed weights, and rotations by position.
#pragma once

#include "operations.h"
#include "simd.h"
#include "weights.h"

namespace janus::JANUS_VARIANT {

// A table is packed as a product's weight is, with its rows as outputs: a row is a column of a tile.
inline void table_row(const Matrix& matrix, int64_t index, float* row) {
    const uint8_t* bytes = matrix.tile(int(index / kTileOutputs));
    const int column = int(index % kTileOutputs);
    if (matrix.form == Form::float32) {
        for (int k = 0; k < matrix.num_inputs; ++k)
            std::memcpy(row + k, bytes + (size_t(k) * kTileOutputs + column) * sizeof(float), sizeof(float));
        return;
    }
    if (matrix.form == Form::bf16) {
        const uint16_t* pairs = reinterpret_cast<const uint16_t*>(bytes);
        for (int k = 0; k < matrix.num_inputs; ++k)
            row[k] = from_bf16(pairs[(size_t(k / 2) * kTileOutputs + column) * 2 + k % 2]);
        return;
    }
    const int half = column / kLanes;
    const int lane = column % kLanes;
    alignas(64) float scales[kLanes];
    alignas(64) float minimums[kLanes] = {};
    for (int g = 0; g < matrix.num_inputs / kGroupInputs; ++g, bytes += matrix.group_bytes()) {
        const uint16_t* halves = reinterpret_cast<const uint16_t*>(bytes + matrix.code_bytes());
        store(scales, from_halves(halves + half * kLanes));
        if (matrix.has_minimum) store(minimums, from_halves(halves + kTileOutputs + half * kLanes));
        for (int k = 0; k < kGroupInputs; ++k) {
            int code;
            if (matrix.form == Form::four_bit) {
                const uint8_t both = bytes[half * 256 + k / 8 * 64 + lane * 4 + k % 4];
                code = k % 8 < 4 ? both & 0x0f : both >> 4;
            } else {
                code = bytes[half * 512 + k / 4 * 64 + lane * 4 + k % 4];
            }
            row[g * kGroupInputs + k] = scales[lane] * float(code - matrix.zero_point) + minimums[lane];
        }
    }
}

inline void rotate(const Rotation& rotation, int64_t position, float* row) {
    const int half = rotation.head_width / 2;
    const float* cosines = rotation.cosines + position * half;
    const float* sines = rotation.sines + position * half;
    for (int head = 0; head < rotation.num_heads; ++head, row += rotation.head_width) {
        for (int i = 0; i < half; i += kLanes) {
            const int n = half - i < kLanes ? half - i : kLanes;
            const F first = load(row + i, n);
            const F second = load(row + half + i, n);
            const F cosine = load(cosines + i, n);
            const F sine = load(sines + i, n);
            store(row + i, sub(mul(first, cosine), mul(second, sine)), n);
            store(row + half + i, add(mul(second, cosine), mul(first, sine)), n);
        }
    }
}

}  // namespace janus::JANUS_VARIANT
