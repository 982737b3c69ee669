// Weights from a checkpoint's own bytes into tiles, and back to float32.
//
// Blocks of a GGUF file (ggml, docs/gguf.md and ggml-common.h) go over code for code and scale for scale. What has no form
// of its own goes through float32. The source is somebody's file: its length and the order of its rows are checked before
// anything is read.
#include <atomic>
#include <cmath>
#include <cstring>

#include "threads.h"
#include "weights.h"

namespace janus {

namespace {

enum class Type : int32_t { f32 = 0, f16 = 1, bf16 = 2, q4_0 = 3, q4_1 = 4, q5_0 = 5, q5_1 = 6, q8_0 = 7 };

enum Status : int32_t {
    kOk = 0,
    kWrongSize = -1,     // no shape of a matrix, or not the memory for it
    kShortSource = -2,   // the source ends before its rows do
    kNoSuchRow = -3,
    kNoSuchForm = -4,    // the type does not go into the form
    kNotInEightBits = -5,  // a number that is none, or beyond the largest scale
};

// Where a matrix comes from. Output i of the packed one is the source's row order[i], or i without an order. A dense one may
// be stored input by input: then a row of the source is what it has for one output all the same.
struct Source {
    const uint8_t* bytes;
    int64_t num_bytes;
    const int64_t* order;  // or null
    int64_t num_rows;
    int64_t num_columns;
    Type type;
    int32_t is_transposed;

    bool is_dense() const { return type == Type::f32 || type == Type::f16 || type == Type::bf16; }
    int64_t row(int64_t output) const { return order ? order[output] : output; }
};

struct Block {
    int64_t bytes;
    int64_t values;
};

constexpr Block block_of(Type type) {
    switch (type) {
        case Type::f32: return {4, 1};
        case Type::f16: return {2, 1};
        case Type::bf16: return {2, 1};
        case Type::q4_0: return {18, 32};  // scale, 16 bytes of codes: the low nibbles, then the high ones
        case Type::q4_1: return {20, 32};  // scale, minimum, codes
        case Type::q5_0: return {22, 32};  // scale, 4 bytes of fifth bits, codes
        case Type::q5_1: return {24, 32};  // scale, minimum, fifth bits, codes
        case Type::q8_0: return {34, 32};  // scale, 32 signed codes
    }
    return {0, 0};
}

// The form that holds a block type as it is.
struct Exact {
    Form form;
    int32_t zero_point;
    int32_t has_minimum;
};

constexpr Exact exact_of(Type type) {
    switch (type) {
        case Type::q4_0: return {Form::four_bit, 8, 0};
        case Type::q4_1: return {Form::four_bit, 0, 1};
        case Type::q5_0: return {Form::eight_bit, 16, 0};
        case Type::q5_1: return {Form::eight_bit, 0, 1};
        case Type::q8_0: return {Form::eight_bit, 128, 0};
        default: return {Form::float32, 0, 0};
    }
}

bool is_exact(const Source& source, const Matrix& matrix) {
    const Exact exact = exact_of(source.type);
    return !source.is_dense() && matrix.form == exact.form && matrix.zero_point == exact.zero_point &&
           matrix.has_minimum == exact.has_minimum;
}

template <typename T>
T read(const uint8_t* p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

template <typename T>
void write(uint8_t* p, T value) {
    std::memcpy(p, &value, sizeof value);
}

float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

uint32_t to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// IEEE binary16: the exponent is moved by a product, which also makes subnormals normal.
float from_half(uint16_t half) {
    const uint32_t magnitude = uint32_t(half & 0x7fff) << 13;
    uint32_t bits = to_bits(from_bits(magnitude) * 0x1p112f);
    bits |= magnitude >= 0x0f800000 ? 0x7f800000 : 0;
    return from_bits(bits | uint32_t(half & 0x8000) << 16);
}

// The smallest half that is not below x, which lies between 0 and the largest half.
uint16_t to_half_above(float x) {
    if (x < 0x1p-14f) return uint16_t(std::ceil(x * 0x1p24f));
    const uint32_t bits = to_bits(x);
    return uint16_t((bits >> 13) - (112 << 10) + ((bits & 0x1fff) != 0));
}

float from_bf16(uint16_t half) { return from_bits(uint32_t(half) << 16); }

// To the nearest, to even where two are as near; a NaN stays one.
uint16_t to_bf16(float x) {
    const uint32_t bits = to_bits(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// 32 values of each of 32 outputs, one group of one tile; what there is none of is zero.
using Group = float[kTileOutputs][kGroupInputs];

// Four neighbouring codes as one word each, in order of the inputs; `at` is behind the scale and the minimum.
template <Type type>
inline void read_codes(const uint8_t* at, uint32_t words[8]) {
    if constexpr (type == Type::q8_0) {
        for (int j = 0; j < 8; ++j) words[j] = read<uint32_t>(at + 4 * j) ^ 0x80808080u;
    } else {
        constexpr bool has_fifth_bit = type == Type::q5_0 || type == Type::q5_1;
        const uint8_t* nibbles = at + (has_fifth_bit ? 4 : 0);
        for (int j = 0; j < 4; ++j) {
            const uint32_t both = read<uint32_t>(nibbles + 4 * j);
            words[j] = both & 0x0f0f0f0fu;
            words[j + 4] = (both >> 4) & 0x0f0f0f0fu;
        }
        if constexpr (has_fifth_bit) {
            const uint32_t fifth = read<uint32_t>(at);
            // Bit k of four goes to byte k.
            for (int j = 0; j < 8; ++j) words[j] |= ((((fifth >> (4 * j)) & 0xf) * 0x00204081u) & 0x01010101u) << 4;
        }
    }
}

template <Type type>
void repack_tile(const Matrix& matrix, const Source& source, int tile, uint8_t* bytes) {
    constexpr Exact exact = exact_of(type);
    constexpr int64_t block_bytes = block_of(type).bytes;
    constexpr bool is_four_bit = exact.form == Form::four_bit;
    constexpr int code_bytes = is_four_bit ? 512 : 1024;
    constexpr int group_bytes = code_bytes + 2 * kTileOutputs * (exact.has_minimum ? 2 : 1);
    const int num_groups = matrix.num_inputs / kGroupInputs;
    const int first = tile * kTileOutputs;
    const int num_outputs = matrix.num_outputs - first < kTileOutputs ? matrix.num_outputs - first : kTileOutputs;
    if (num_outputs < kTileOutputs) std::memset(bytes, 0, matrix.tile_bytes());
    for (int i = 0; i < num_outputs; ++i) {
        const uint8_t* from = source.bytes + source.row(first + i) * num_groups * block_bytes;
        uint8_t* codes = bytes + i / 16 * (code_bytes / 2) + i % 16 * 4;
        uint8_t* scale = bytes + code_bytes + 2 * i;
        for (int g = 0; g < num_groups; ++g, from += block_bytes, codes += group_bytes, scale += group_bytes) {
            write(scale, read<uint16_t>(from));
            if constexpr (exact.has_minimum) write(scale + 2 * kTileOutputs, read<uint16_t>(from + 2));
            uint32_t words[8];
            read_codes<type>(from + (exact.has_minimum ? 4 : 2), words);
            if constexpr (is_four_bit) {
                for (int j = 0; j < 4; ++j) write(codes + 64 * j, words[2 * j] | words[2 * j + 1] << 4);
            } else {
                for (int j = 0; j < 8; ++j) write(codes + 64 * j, words[j]);
            }
        }
    }
}

template <Type type>
void read_block(const uint8_t* from, float* values) {
    constexpr Exact exact = exact_of(type);
    const float scale = from_half(read<uint16_t>(from));
    uint32_t words[8];
    read_codes<type>(from + (exact.has_minimum ? 4 : 2), words);
    for (int k = 0; k < kGroupInputs; ++k)
        values[k] = scale * float(int(words[k / 4] >> (8 * (k % 4)) & 0xff) - exact.zero_point);
    if constexpr (exact.has_minimum) {
        const float minimum = from_half(read<uint16_t>(from + 2));
        for (int k = 0; k < kGroupInputs; ++k) values[k] += minimum;
    }
}

void read_dense(Type type, const uint8_t* from, int n, float* values) {
    if (type == Type::f32) {
        std::memcpy(values, from, size_t(n) * sizeof(float));
    } else if (type == Type::f16) {
        for (int k = 0; k < n; ++k) values[k] = from_half(read<uint16_t>(from + 2 * k));
    } else {
        for (int k = 0; k < n; ++k) values[k] = from_bf16(read<uint16_t>(from + 2 * k));
    }
}

// Inputs [32 g, 32 g + n) of the tile's outputs. Mutates: `values`, where there are inputs and outputs alone.
void read_group(const Source& source, int first_output, int num_outputs, int g, int n, Group& values) {
    const Block block = block_of(source.type);
    if (source.is_transposed) {
        const int64_t first_row = source.row(first_output);
        bool are_neighbours = true;
        for (int i = 0; i < num_outputs; ++i)
            are_neighbours = are_neighbours && source.row(first_output + i) == first_row + i;
        for (int k = 0; k < n; ++k) {
            const uint8_t* inputs = source.bytes + (int64_t(g) * kGroupInputs + k) * source.num_rows * block.bytes;
            float line[kTileOutputs];
            if (are_neighbours) {
                read_dense(source.type, inputs + first_row * block.bytes, num_outputs, line);
            } else {
                for (int i = 0; i < num_outputs; ++i)
                    read_dense(source.type, inputs + source.row(first_output + i) * block.bytes, 1, line + i);
            }
            for (int i = 0; i < num_outputs; ++i) values[i][k] = line[i];
        }
        return;
    }
    const int64_t row_bytes = source.num_columns / block.values * block.bytes;
    const int64_t offset = int64_t(g) * kGroupInputs / block.values * block.bytes;
    for (int i = 0; i < num_outputs; ++i) {
        const uint8_t* from = source.bytes + source.row(first_output + i) * row_bytes + offset;
        switch (source.type) {
            case Type::q4_0: read_block<Type::q4_0>(from, values[i]); break;
            case Type::q4_1: read_block<Type::q4_1>(from, values[i]); break;
            case Type::q5_0: read_block<Type::q5_0>(from, values[i]); break;
            case Type::q5_1: read_block<Type::q5_1>(from, values[i]); break;
            case Type::q8_0: read_block<Type::q8_0>(from, values[i]); break;
            default: read_dense(source.type, from, n, values[i]);
        }
    }
}

// Symmetric 8-bit codes, with the smallest scale that takes none of them beyond 127. False where there is no such scale.
bool quantise(const float* values, uint8_t* codes, uint8_t* scale) {
    float peak = 0;
    bool is_finite = true;
    for (int k = 0; k < kGroupInputs; ++k) {
        const float magnitude = std::fabs(values[k]);
        is_finite = is_finite && magnitude <= 0x1.fffffep127f;
        peak = magnitude > peak ? magnitude : peak;
    }
    const float step = peak / 127.0f;
    if (!is_finite || step > 65504.0f) return false;
    const uint16_t half = to_half_above(step);
    const float inverse = half ? 1.0f / from_half(half) : 0.0f;
    write(scale, half);
    for (int k = 0; k < kGroupInputs; ++k) {
        // To the nearest, to even: what is added leaves no bit for less than a whole.
        const float rounded = (values[k] * inverse + 0x1.8p23f) - 0x1.8p23f;
        codes[k / 4 * 64 + k % 4] = uint8_t(int(rounded) + 128);
    }
    return true;
}

bool write_group(const Matrix& matrix, int num_outputs, int g, int n, const Group& values, uint8_t* tile) {
    if (matrix.form == Form::eight_bit) {
        uint8_t* bytes = tile + size_t(g) * matrix.group_bytes();
        for (int i = 0; i < num_outputs; ++i)
            if (!quantise(values[i], bytes + i / 16 * 512 + i % 16 * 4, bytes + 1024 + 2 * i)) return false;
    } else if (matrix.form == Form::bf16) {
        uint16_t* pairs = reinterpret_cast<uint16_t*>(tile) + size_t(g) * kGroupInputs * kTileOutputs;
        for (int k = 0; k < n; k += 2, pairs += 2 * kTileOutputs)
            for (int i = 0; i < kTileOutputs; ++i) {
                pairs[2 * i] = to_bf16(values[i][k]);
                pairs[2 * i + 1] = to_bf16(values[i][k + 1]);
            }
    } else {
        float* outputs = reinterpret_cast<float*>(tile) + size_t(g) * kGroupInputs * kTileOutputs;
        for (int k = 0; k < n; ++k, outputs += kTileOutputs)
            for (int i = 0; i < kTileOutputs; ++i) outputs[i] = values[i][k];
    }
    return true;
}

bool convert_tile(const Matrix& matrix, const Source& source, int tile, uint8_t* bytes) {
    const int first = tile * kTileOutputs;
    const int num_outputs = matrix.num_outputs - first < kTileOutputs ? matrix.num_outputs - first : kTileOutputs;
    if (num_outputs < kTileOutputs) std::memset(bytes, 0, matrix.tile_bytes());
    alignas(64) Group values = {};
    for (int g = 0; g * kGroupInputs < matrix.num_inputs; ++g) {
        const int left = matrix.num_inputs - g * kGroupInputs;
        const int n = left < kGroupInputs ? left : kGroupInputs;
        if (n < kGroupInputs) std::memset(values, 0, sizeof values);
        read_group(source, first, num_outputs, g, n, values);
        if (!write_group(matrix, num_outputs, g, n, values, bytes)) return false;
    }
    return true;
}

bool pack_tile(const Matrix& matrix, const Source& source, int tile, uint8_t* bytes) {
    if (!is_exact(source, matrix)) return convert_tile(matrix, source, tile, bytes);
    switch (source.type) {
        case Type::q4_0: repack_tile<Type::q4_0>(matrix, source, tile, bytes); break;
        case Type::q4_1: repack_tile<Type::q4_1>(matrix, source, tile, bytes); break;
        case Type::q5_0: repack_tile<Type::q5_0>(matrix, source, tile, bytes); break;
        case Type::q5_1: repack_tile<Type::q5_1>(matrix, source, tile, bytes); break;
        default: repack_tile<Type::q8_0>(matrix, source, tile, bytes);
    }
    return true;
}

// Output i of a group's inputs [0, n); `bytes` are the group's.
void unpack_group(const Matrix& matrix, const uint8_t* bytes, int i, int n, float* values) {
    if (matrix.form == Form::float32) {
        for (int k = 0; k < n; ++k) values[k] = read<float>(bytes + 4 * (k * kTileOutputs + i));
        return;
    }
    if (matrix.form == Form::bf16) {
        for (int k = 0; k < n; ++k)
            values[k] = from_bf16(read<uint16_t>(bytes + 2 * ((k / 2 * kTileOutputs + i) * 2 + k % 2)));
        return;
    }
    const uint8_t* codes = bytes + i / 16 * (matrix.code_bytes() / 2) + i % 16 * 4;
    const uint8_t* scales = bytes + matrix.code_bytes() + 2 * i;
    const float scale = from_half(read<uint16_t>(scales));
    if (matrix.form == Form::four_bit) {
        for (int k = 0; k < kGroupInputs; ++k) {
            const int both = codes[k / 8 * 64 + k % 4];
            values[k] = scale * float((k % 8 < 4 ? both & 0x0f : both >> 4) - matrix.zero_point);
        }
    } else {
        for (int k = 0; k < kGroupInputs; ++k)
            values[k] = scale * float(codes[k / 4 * 64 + k % 4] - matrix.zero_point);
    }
    if (matrix.has_minimum) {
        const float minimum = from_half(read<uint16_t>(scales + 2 * kTileOutputs));
        for (int k = 0; k < kGroupInputs; ++k) values[k] += minimum;
    }
}

void unpack_row(const Matrix& matrix, int64_t row, float* values) {
    const uint8_t* bytes = matrix.tile(int(row / kTileOutputs));
    const size_t dense_bytes = size_t(matrix.form == Form::bf16 ? 2 : 4) * kTileOutputs * kGroupInputs;
    const size_t group_bytes = matrix.is_quantised() ? matrix.group_bytes() : dense_bytes;
    for (int first = 0; first < matrix.num_inputs; first += kGroupInputs, bytes += group_bytes) {
        const int left = matrix.num_inputs - first;
        unpack_group(matrix, bytes, int(row % kTileOutputs), left < kGroupInputs ? left : kGroupInputs, values + first);
    }
}

bool is_matrix(const Matrix& matrix) {
    if (matrix.num_outputs < 1 || matrix.num_inputs < 1) return false;
    if (matrix.form < Form::four_bit || matrix.form > Form::float32) return false;
    return !matrix.is_quantised() || matrix.num_inputs % kGroupInputs == 0;
}

Status check(const Source& source) {
    if (!source.bytes || source.num_rows < 1 || source.num_columns < 1 || source.num_rows > INT32_MAX ||
        source.num_columns > INT32_MAX)
        return kWrongSize;
    if (source.type < Type::f32 || source.type > Type::q8_0) return kNoSuchForm;
    const Block block = block_of(source.type);
    if (source.num_columns % block.values || (source.is_transposed && !source.is_dense())) return kNoSuchForm;
    // Neither product is beyond 2^33 * 2^31.
    const int64_t row_bytes = source.num_columns / block.values * block.bytes;
    return source.num_bytes / row_bytes < source.num_rows ? kShortSource : kOk;
}

// f(unit) for every unit, on all threads where there are any.
template <typename F>
void share(Threads* threads, int64_t num_units, int64_t grain, F&& f) {
    if (!threads) {
        for (int64_t unit = 0; unit < num_units; ++unit) f(unit);
        return;
    }
    threads->run([&](Crew& crew) { crew.share(num_units, grain, f); });
}

Status pack(Threads* threads, const Matrix& matrix, const Source& source, uint8_t* bytes, int64_t num_bytes) {
    if (!is_matrix(matrix) || !bytes || num_bytes < 0 || size_t(num_bytes) != matrix.num_bytes()) return kWrongSize;
    if (const Status status = check(source)) return status;
    if (source.num_columns != matrix.num_inputs) return kWrongSize;
    if (!source.order && matrix.num_outputs > source.num_rows) return kNoSuchRow;
    for (int64_t i = 0; source.order && i < matrix.num_outputs; ++i)
        if (source.order[i] < 0 || source.order[i] >= source.num_rows) return kNoSuchRow;
    const bool is_int8 = matrix.form == Form::eight_bit && matrix.zero_point == 128 && !matrix.has_minimum;
    if (matrix.is_quantised() && !is_int8 && !is_exact(source, matrix)) return kNoSuchForm;
    std::atomic<bool> is_whole{true};
    share(threads, matrix.num_tiles(), 1, [&](int64_t tile) {
        if (!pack_tile(matrix, source, int(tile), bytes + size_t(tile) * matrix.tile_bytes())) is_whole = false;
    });
    return is_whole ? kOk : kNotInEightBits;
}

// Whether a dense source has no value that bf16 would round.
Status is_exact_in_bf16(Threads* threads, const Source& source, int32_t* answer) {
    if (const Status status = check(source)) return status;
    if (!source.is_dense()) return kNoSuchForm;
    constexpr int64_t kStep = 4096;
    const int64_t num_values = source.num_rows * source.num_columns;
    const int64_t value_bytes = block_of(source.type).bytes;
    std::atomic<bool> is_whole{true};
    share(threads, (num_values + kStep - 1) / kStep, 16, [&](int64_t step) {
        if (!is_whole.load(std::memory_order_relaxed)) return;
        const int n = int(num_values - step * kStep < kStep ? num_values - step * kStep : kStep);
        float values[kStep];
        read_dense(source.type, source.bytes + step * kStep * value_bytes, n, values);
        uint32_t lost = 0;
        for (int k = 0; k < n; ++k) lost |= to_bits(values[k]) & 0xffff;
        if (lost) is_whole = false;
    });
    *answer = is_whole;
    return kOk;
}

Status unpack(Threads* threads, const Matrix& matrix, const int64_t* rows, int64_t num_rows, float* values) {
    if (!is_matrix(matrix) || !matrix.bytes || num_rows < 0) return kWrongSize;
    if (!rows && num_rows > matrix.num_outputs) return kNoSuchRow;
    for (int64_t r = 0; rows && r < num_rows; ++r)
        if (rows[r] < 0 || rows[r] >= matrix.num_outputs) return kNoSuchRow;
    share(threads, num_rows, kTileOutputs,
          [&](int64_t r) { unpack_row(matrix, rows ? rows[r] : r, values + r * matrix.num_inputs); });
    return kOk;
}

}  // namespace

}  // namespace janus

extern "C" {

// All of these take threads or null, and return 0 or what was wrong.

// Fills `bytes`, num_bytes of them, with the source's values in the matrix' form.
__attribute__((visibility("default"))) int32_t janus_pack(janus::Threads* threads, const janus::Matrix* matrix,
                                                          const janus::Source* source, uint8_t* bytes,
                                                          int64_t num_bytes) {
    return janus::pack(threads, *matrix, *source, bytes, num_bytes);
}

__attribute__((visibility("default"))) int32_t janus_is_exact_in_bf16(janus::Threads* threads,
                                                                      const janus::Source* source, int32_t* answer) {
    return janus::is_exact_in_bf16(threads, *source, answer);
}

// The values of rows in float32: of those that `rows` lists, or of the first num_rows where it is null.
__attribute__((visibility("default"))) int32_t janus_unpack(janus::Threads* threads, const janus::Matrix* matrix,
                                                            const int64_t* rows, int64_t num_rows, float* values) {
    return janus::unpack(threads, *matrix, rows, num_rows, values);
}

}  // extern "C"
