// Rows of activations, in the representations that their readers ask for.
//
// float32 is what residuals, norms and attention read; a quantised product reads 8-bit codes with a scale for each group of
// 32 inputs (one scale a row loses fifteen times as much), a bf16 product bf16.
#pragma once

#include <cstdint>

#include "weights.h"

namespace janus {

struct Rows {
    float* floats;     // [rows, width]
    int8_t* codes;     // [rows, width]
    float* scales;     // [rows, width / 32]
    float* sums;       // [rows, width / 32]: scale times the sum of the group's codes
    int32_t* totals;   // [rows, width / 32]: the sum of the group's codes
    uint16_t* halves;  // [rows, even width]: bf16, the last of an odd width is 0
    int32_t width;

    int num_groups() const { return width / kGroupInputs; }
    int half_width() const { return width + (width & 1); }
};

}  // namespace janus
