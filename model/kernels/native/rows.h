// Rows of activations, in the representations that their readers ask for.
//
// float32 is what residuals, norms and attention read; a quantised product reads 8-bit codes with a scale for each 16 inputs,
// a bf16 product bf16. Scales are what quality hangs on: one for 32 inputs loses 1.8 times as much, one for a row 15 times
// that.
#pragma once

#include <cstdint>

#include "weights.h"

namespace janus {

constexpr int kScaleInputs = 16;
constexpr int kGroupScales = kGroupInputs / kScaleInputs;

struct Rows {
    float* floats;     // [rows, width]
    int8_t* codes;     // [rows, width]
    float* scales;     // [rows, width / 16]
    int32_t* totals;   // [rows, width / 16]: the sum of the codes of a scale
    float* sums;       // [rows, width / 32]: the sum of the values that the codes of a group stand for
    uint16_t* halves;  // [rows, even width]: bf16, the last of an odd width is 0
    int32_t width;

    int num_groups() const { return width / kGroupInputs; }
    int half_width() const { return width + (width & 1); }
};

}  // namespace janus
