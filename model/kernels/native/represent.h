// From a row's floats to what its readers ask for: 8-bit codes with a scale a group, or bf16.
#pragma once

#include "rows.h"
#include "simd.h"

namespace janus::JANUS_VARIANT {

// What there is no number for gets one, so that sums of codes stay what they can be; the scale tells of infinity.
inline I code(F x) { return round(min(max(x, set(-127.0f)), set(127.0f))); }

// Group `group` of a row of codes from its 32 floats: codes are round(x / scale), with the scale that takes the largest of 16
// to 127.
inline void quantise_group(const float* x, const Rows& rows, int row, int group) {
    const int64_t at = int64_t(row) * rows.num_groups() + group;
    int8_t* codes = rows.codes + at * kGroupInputs;
    float sum_of_values = 0.0f;
    for (int i = 0; i < kGroupScales; ++i) {
        const F values = load(x + i * kScaleInputs);
        const float peak = largest(abs(values));
        const float scale = peak / 127.0f;
        const I rounded = code(mul(values, set(scale > 0.0f ? 127.0f / peak : 0.0f)));
        const int32_t total = sum(rounded);
        store_bytes(codes + i * kScaleInputs, rounded);
        rows.scales[at * kGroupScales + i] = scale;
        rows.totals[at * kGroupScales + i] = total;
        sum_of_values += scale * float(total);
    }
    rows.sums[at] = sum_of_values;
}

// Columns [begin, end) of a row; begin and end lie on borders of groups, or the end is the row's.
inline void represent(const Rows& rows, int row, int begin, int end) {
    const float* x = rows.floats + int64_t(row) * rows.width;
    if (rows.codes)
        for (int group = begin / kGroupInputs; group < end / kGroupInputs; ++group)
            quantise_group(x + group * kGroupInputs, rows, row, group);
    if (rows.halves) {
        uint16_t* halves = rows.halves + int64_t(row) * rows.half_width();
        for (int i = begin; i < end; ++i) halves[i] = to_bf16(x[i]);
        if (end == rows.width && (rows.width & 1)) halves[end] = 0;
    }
}

}  // namespace janus::JANUS_VARIANT
