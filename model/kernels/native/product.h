// y = W x for a tile of 32 outputs and any number of rows.
//
// Rows go through in blocks of up to kMaxRows, whose sums stay in registers, so that a weight is loaded once a block. What
// a row gets is the same sequence of operations in a block of any size, so the same bytes in any batch.
#pragma once

#include "activations.h"
#include "dots.h"
#include "operations.h"
#include "represent.h"

namespace janus::JANUS_VARIANT {

#if defined(__AVX512F__)
constexpr int kMaxRows = 4;
#elif defined(__AVX2__)
constexpr int kMaxRows = 2;
#else
constexpr int kMaxRows = 1;
#endif

// Rows of one call: as many as their sums stay in the first cache.
constexpr int kStripRows = 48;

// Asks for a part of the next tile while this one is computed, into the second cache, where it doesn't drive this one out of
// the first: half of a step's time with 4 to 8 rows. A single row's time is the memory's anyway, which streams by itself.
template <int num_rows>
inline void ask_ahead(const void* part, size_t tile_bytes, int num_bytes) {
    if constexpr (num_rows > 1)
        for (int i = 0; i < num_bytes; i += 64)
            __builtin_prefetch(static_cast<const uint8_t*>(part) + tile_bytes + i, 0, 2);
}

template <int num_rows>
struct Sums {
    F low[num_rows];
    F high[num_rows];
};

// Codes of 16 inputs, which share a scale of the rows, for the two halves of a tile: exact sums of products.
template <int num_rows, bool is_four_bit>
inline void add_codes(const uint8_t* bytes, const int8_t* codes, int64_t width, I* low, I* high) {
    if constexpr (is_four_bit) {
        for (int j = 0; j < 2; ++j) {
            const Codes a = load_codes(bytes + 64 * j);
            const Codes b = load_codes(bytes + 256 + 64 * j);
            const Codes a_low = low_nibbles(a);
            const Codes b_low = low_nibbles(b);
            const Codes a_high = high_nibbles(a);
            const Codes b_high = high_nibbles(b);
            for (int r = 0; r < num_rows; ++r) {
                const int8_t* inputs = codes + r * width + 8 * j;
                low[r] = dot<true>(low[r], a_low, inputs);
                high[r] = dot<true>(high[r], b_low, inputs);
                low[r] = dot<true>(low[r], a_high, inputs + 4);
                high[r] = dot<true>(high[r], b_high, inputs + 4);
            }
        }
    } else {
        for (int j = 0; j < 4; ++j) {
            const Codes a = load_codes(bytes + 64 * j);
            const Codes b = load_codes(bytes + 512 + 64 * j);
            for (int r = 0; r < num_rows; ++r) {
                const int8_t* inputs = codes + r * width + 4 * j;
                low[r] = dot<false>(low[r], a, inputs);
                high[r] = dot<false>(high[r], b, inputs);
            }
        }
    }
}

template <int num_rows, bool is_four_bit, bool has_minimum>
inline void quantised_block(const Matrix& matrix, int tile, const Rows& x, int begin, float* y) {
    const uint8_t* bytes = matrix.tile(tile);
    const int num_groups = matrix.num_inputs / kGroupInputs;
    const int64_t width = x.width;
    const int8_t* codes = x.codes + begin * width;
    const int64_t first = int64_t(begin) * num_groups;
    constexpr int kCodeBytes = is_four_bit ? 512 : 1024;
    constexpr int kGroupBytes = kCodeBytes + 64 * (has_minimum ? 2 : 1);
    const size_t tile_bytes = size_t(num_groups) * kGroupBytes;
    Sums<num_rows> sums;
    for (int r = 0; r < num_rows; ++r) sums.low[r] = sums.high[r] = zero();
    for (int g = 0; g < num_groups; ++g, bytes += kGroupBytes, codes += kGroupInputs) {
        ask_ahead<num_rows>(bytes, tile_bytes, kGroupBytes);
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(bytes + kCodeBytes);
        Sums<num_rows> group;
        for (int i = 0; i < kGroupScales; ++i) {
            I low[num_rows];
            I high[num_rows];
            for (int r = 0; r < num_rows; ++r) {
                const int64_t at = (first + r * num_groups + g) * kGroupScales + i;
                low[r] = high[r] = set(has_minimum ? 0 : -matrix.zero_point * x.totals[at]);
            }
            add_codes<num_rows, is_four_bit>(bytes + i * (kCodeBytes / 2 / kGroupScales), codes + i * kScaleInputs, width,
                                             low, high);
            for (int r = 0; r < num_rows; ++r) {
                const F scale = set(x.scales[(first + r * num_groups + g) * kGroupScales + i]);
                group.low[r] = i ? fma(to_float(low[r]), scale, group.low[r]) : mul(to_float(low[r]), scale);
                group.high[r] = i ? fma(to_float(high[r]), scale, group.high[r]) : mul(to_float(high[r]), scale);
            }
        }
        const F low_scale = from_halves(scales);
        const F high_scale = from_halves(scales + kLanes);
        for (int r = 0; r < num_rows; ++r) {
            sums.low[r] = fma(group.low[r], low_scale, sums.low[r]);
            sums.high[r] = fma(group.high[r], high_scale, sums.high[r]);
        }
        if constexpr (has_minimum) {
            const F low_minimum = from_halves(scales + 2 * kLanes);
            const F high_minimum = from_halves(scales + 3 * kLanes);
            for (int r = 0; r < num_rows; ++r) {
                const F sum = set(x.sums[first + r * num_groups + g]);
                sums.low[r] = fma(low_minimum, sum, sums.low[r]);
                sums.high[r] = fma(high_minimum, sum, sums.high[r]);
            }
        }
    }
    for (int r = 0; r < num_rows; ++r) {
        store(y + r * kTileOutputs, sums.low[r]);
        store(y + r * kTileOutputs + kLanes, sums.high[r]);
    }
}

template <int num_rows>
inline void bf16_block(const Matrix& matrix, int tile, const Rows& x, int begin, float* y) {
    const uint16_t* pairs = reinterpret_cast<const uint16_t*>(matrix.tile(tile));
    const int64_t width = x.half_width();
    const uint16_t* inputs = x.halves + begin * width;
    const size_t tile_bytes = matrix.tile_bytes();
    Sums<num_rows> sums;
    for (int r = 0; r < num_rows; ++r) sums.low[r] = sums.high[r] = zero();
    for (int64_t k = 0; k < width; k += 2, pairs += 2 * kTileOutputs) {
        ask_ahead<num_rows>(pairs, tile_bytes, 128);
        for (int r = 0; r < num_rows; ++r) {
            sums.low[r] = dot_pairs(sums.low[r], pairs, inputs + r * width + k);
            sums.high[r] = dot_pairs(sums.high[r], pairs + 2 * kLanes, inputs + r * width + k);
        }
    }
    for (int r = 0; r < num_rows; ++r) {
        store(y + r * kTileOutputs, sums.low[r]);
        store(y + r * kTileOutputs + kLanes, sums.high[r]);
    }
}

template <int num_rows>
inline void float32_block(const Matrix& matrix, int tile, const Rows& x, int begin, float* y) {
    const float* weights = reinterpret_cast<const float*>(matrix.tile(tile));
    const int64_t width = x.width;
    const float* inputs = x.floats + begin * width;
    const size_t tile_bytes = matrix.tile_bytes();
    Sums<num_rows> sums;
    for (int r = 0; r < num_rows; ++r) sums.low[r] = sums.high[r] = zero();
    for (int64_t k = 0; k < width; ++k, weights += kTileOutputs) {
        ask_ahead<num_rows>(weights, tile_bytes, 128);
        const F low = load(weights);
        const F high = load(weights + kLanes);
        for (int r = 0; r < num_rows; ++r) {
            const F input = set(inputs[r * width + k]);
            sums.low[r] = fma(low, input, sums.low[r]);
            sums.high[r] = fma(high, input, sums.high[r]);
        }
    }
    for (int r = 0; r < num_rows; ++r) {
        store(y + r * kTileOutputs, sums.low[r]);
        store(y + r * kTileOutputs + kLanes, sums.high[r]);
    }
}

template <int num_rows>
inline void block(const Matrix& matrix, int tile, const Rows& x, int begin, float* y) {
    switch (matrix.form) {
        case Form::four_bit:
            return matrix.has_minimum ? quantised_block<num_rows, true, true>(matrix, tile, x, begin, y)
                                      : quantised_block<num_rows, true, false>(matrix, tile, x, begin, y);
        case Form::eight_bit:
            return matrix.has_minimum ? quantised_block<num_rows, false, true>(matrix, tile, x, begin, y)
                                      : quantised_block<num_rows, false, false>(matrix, tile, x, begin, y);
        case Form::bf16:
            return bf16_block<num_rows>(matrix, tile, x, begin, y);
        case Form::float32:
            return float32_block<num_rows>(matrix, tile, x, begin, y);
    }
}

// Rows [begin, end) into y [end - begin, 32], in blocks of sizes that differ by one at most.
inline void strip(const Matrix& matrix, int tile, const Rows& x, int begin, int end, float* y) {
    while (begin < end) {
        const int num_blocks = (end - begin + kMaxRows - 1) / kMaxRows;
        const int num_rows = (end - begin + num_blocks - 1) / num_blocks;
        switch (num_rows) {
            case 1: block<1>(matrix, tile, x, begin, y); break;
#if defined(__AVX2__)
            case 2: block<2>(matrix, tile, x, begin, y); break;
#endif
#if defined(__AVX512F__)
            case 3: block<3>(matrix, tile, x, begin, y); break;
            case 4: block<4>(matrix, tile, x, begin, y); break;
#endif
        }
        begin += num_rows;
        y += num_rows * kTileOutputs;
    }
}

// Where a tile of a product lies: in which of its matrices, and at which output.
struct Place {
    const Matrix* matrix;
    int tile;
    int output;
};

inline Place place_of(const Product& product, int tile) {
    Place place = {product.segments, tile, 0};
    while (place.tile >= place.matrix->num_tiles()) {
        place.tile -= place.matrix->num_tiles();
        place.output += place.matrix->num_outputs;
        ++place.matrix;
    }
    place.output += place.tile * kTileOutputs;
    return place;
}

inline int num_outputs_of(const Place& place) {
    const int left = place.matrix->num_outputs - place.tile * kTileOutputs;
    return left < kTileOutputs ? left : kTileOutputs;
}

// What a sum of half a tile becomes on its way out. Loads reach no further than `n` numbers.
inline F finish(const Product& product, F y, int output, int64_t addend, int n) {
    if (product.bias) y = add(y, load(product.bias + output, n));
    y = activate(product.activation, y);
    if (product.addend) y = add(y, load(product.addend + addend, n));
    return y;
}

inline F finish_gated(const Product& product, F gate, F up, int output, int64_t addend, int n) {
    if (product.bias) {
        gate = add(gate, load(product.bias + output, n));
        up = add(up, load(product.bias + product.segments[0].num_outputs + output, n));
    }
    F y = mul(activate(product.activation, gate), up);
    if (product.addend) y = add(y, load(product.addend + addend, n));
    return y;
}

inline void product(const Product& product, const Rows& input, int tile, int begin, int end, const Rows& output) {
    alignas(64) float sums[kStripRows * kTileOutputs];
    alignas(64) float ups[kStripRows * kTileOutputs];
    alignas(64) float finished[kTileOutputs];
    const Place place = place_of(product, tile);
    const int num_outputs = num_outputs_of(place);
    for (; begin < end; begin += kStripRows) {
        const int stop = end < begin + kStripRows ? end : begin + kStripRows;
        strip(*place.matrix, place.tile, input, begin, stop, sums);
        if (product.is_gated) strip(product.segments[1], place.tile, input, begin, stop, ups);
        for (int row = begin; row < stop; ++row) {
            const int64_t from = int64_t(row - begin) * kTileOutputs;
            const int64_t at = int64_t(row) * output.width + place.output;
            float* to = output.floats ? output.floats + at : finished;
            for (int half = 0; half < num_outputs; half += kLanes) {
                const int n = num_outputs - half < kLanes ? num_outputs - half : kLanes;
                const F sum = load(sums + from + half);
                const F y = product.is_gated
                                ? finish_gated(product, sum, load(ups + from + half), place.output + half, at + half, n)
                                : finish(product, sum, place.output + half, at + half, n);
                store(to + half, y, n);
            }
            if (output.codes) quantise_group(to, output, row, place.output / kGroupInputs);
            if (output.halves) {
                uint16_t* halves = output.halves + int64_t(row) * output.half_width();
                for (int i = 0; i < num_outputs; ++i) halves[place.output + i] = to_bf16(to[i]);
                if (place.output + num_outputs == output.width && (output.width & 1)) halves[output.width] = 0;
            }
        }
    }
}

inline void likeliest(const Product& product, const Rows& input, int tile, int begin, int end, Likeliest* best) {
    alignas(64) float sums[kStripRows * kTileOutputs];
    const Place place = place_of(product, tile);
    const int num_outputs = num_outputs_of(place);
    for (; begin < end; begin += kStripRows) {
        const int stop = end < begin + kStripRows ? end : begin + kStripRows;
        strip(*place.matrix, place.tile, input, begin, stop, sums);
        for (int row = begin; row < stop; ++row) {
            float* scores = sums + int64_t(row - begin) * kTileOutputs;
            if (product.bias)
                for (int i = 0; i < num_outputs; ++i) scores[i] += product.bias[place.output + i];
            F peaks = keep(load(scores), num_outputs < kLanes ? num_outputs : kLanes, -INFINITY);
            if (num_outputs > kLanes) peaks = max(peaks, keep(load(scores + kLanes), num_outputs - kLanes, -INFINITY));
            const float peak = largest(peaks);
            if (!(peak > best[row].score)) continue;
            int i = 0;
            while (scores[i] != peak) ++i;
            best[row] = {peak, place.output + i};
        }
    }
}

}  // namespace janus::JANUS_VARIANT
