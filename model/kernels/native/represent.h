// From a row's floats to what its readers ask for: 8-bit codes with a scale a group, or bf16.
#pragma once

#include "rows.h"
#include "simd.h"

namespace janus::JANUS_VARIANT {

// What there is no number for gets one, so that sums of codes stay what they can be; the scale tells of infinity.
inline I code(F x) { return round(min(max(x, set(-127.0f)), set(127.0f))); }

// A group of 32: codes are round(x / scale), with the scale that takes the largest to 127.
inline void quantise_group(const float* x, int8_t* codes, float* scale, float* scaled_sum, int32_t* total) {
    const F first = load(x);
    const F second = load(x + kLanes);
    const float peak = largest(max(abs(first), abs(second)));
    const float step = peak / 127.0f;
    const F inverse = set(step > 0.0f ? 127.0f / peak : 0.0f);
    const I low = code(mul(first, inverse));
    const I high = code(mul(second, inverse));
    store_bytes(codes, low);
    store_bytes(codes + kLanes, high);
    const int32_t sum_of_codes = sum(add(low, high));
    *scale = step;
    *scaled_sum = step * float(sum_of_codes);
    *total = sum_of_codes;
}

// Columns [begin, end) of a row; begin and end lie on borders of groups, or the end is the row's.
inline void represent(const Rows& rows, int row, int begin, int end) {
    const float* x = rows.floats + int64_t(row) * rows.width;
    if (rows.codes) {
        const int64_t first = int64_t(row) * rows.num_groups();
        for (int g = begin / kGroupInputs; g < end / kGroupInputs; ++g)
            quantise_group(x + g * kGroupInputs, rows.codes + int64_t(row) * rows.width + g * kGroupInputs,
                           rows.scales + first + g, rows.sums + first + g, rows.totals + first + g);
    }
    if (rows.halves) {
        uint16_t* halves = rows.halves + int64_t(row) * rows.half_width();
        for (int i = begin; i < end; ++i) halves[i] = to_bf16(x[i]);
        if (end == rows.width && (rows.width & 1)) halves[end] = 0;
    }
}

}  // namespace janus::JANUS_VARIANT
