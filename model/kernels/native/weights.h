// Weights as the products read them: packed once at load, without changing a value.
//
// A matrix of a product y = W x lies in tiles of 32 outputs, and a tile in groups of 32 inputs, one after another, so that
// a product streams it from its first byte to its last. A group of a quantised form:
//
//   codes     for each half of 16 outputs, 4-bit: 4 x 64 bytes; 8-bit: 8 x 64 bytes
//   scales    32 halves (IEEE binary16)
//   minimums  32 halves, where the form has them
//
// 64 bytes of 8-bit codes are 16 outputs of 4 neighbouring inputs each: what one dot-product instruction takes. 64 bytes
// of 4-bit codes hold two of those: the low nibbles, then the high nibbles for the 4 inputs after them.
//
//   value = scale * (code - zero_point) + minimum
//
// bf16: 32 outputs of 2 neighbouring inputs each, pair after pair. float32: 32 outputs of one input, input after input.
// Outputs beyond the last are zeros; so is the second input of a last odd pair.
#pragma once

#include <cstddef>
#include <cstdint>

namespace janus {

constexpr int kTileOutputs = 32;
constexpr int kGroupInputs = 32;

enum class Form : int32_t { four_bit = 0, eight_bit = 1, bf16 = 2, float32 = 3 };

struct Matrix {
    const uint8_t* bytes;
    Form form;
    int32_t num_outputs;
    int32_t num_inputs;
    int32_t zero_point;
    int32_t has_minimum;  // then the zero point is 0

    int num_tiles() const { return (num_outputs + kTileOutputs - 1) / kTileOutputs; }
    bool is_quantised() const { return form == Form::four_bit || form == Form::eight_bit; }
    size_t code_bytes() const { return form == Form::four_bit ? 512 : 1024; }
    size_t group_bytes() const { return code_bytes() + 2 * kTileOutputs * (has_minimum ? 2 : 1); }
    size_t tile_bytes() const {
        if (is_quantised()) return size_t(num_inputs / kGroupInputs) * group_bytes();
        if (form == Form::bf16) return size_t(num_inputs + 1) / 2 * 2 * 2 * kTileOutputs;
        return size_t(num_inputs) * 4 * kTileOutputs;
    }
    size_t num_bytes() const { return size_t(num_tiles()) * tile_bytes(); }
    const uint8_t* tile(int t) const { return bytes + size_t(t) * tile_bytes(); }
};

}  // namespace janus
