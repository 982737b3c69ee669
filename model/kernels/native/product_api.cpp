// A product by itself, for whoever runs a model a module at a time: the same kernels over the same weights as a program.

#include <new>

#include "kernels.h"
#include "memory.h"
#include "program.h"
#include "threads.h"

extern "C" {

// y [rows, outputs of all segments] = W x + bias for x [rows, inputs].
__attribute__((visibility("default"))) int32_t janus_product(const char* kernel, void* threads,
                                                             const janus::Matrix* segments, int32_t num_segments,
                                                             const float* bias, int32_t num_rows, const float* x,
                                                             float* y) {
    using namespace janus;
    const Kernels* kernels = kernels_named(kernel);
    if (!kernels) return kUnknownKernel;
    try {
        Memory<int8_t> codes;
        Memory<float> scales, sums;
        Memory<int32_t> totals;
        Memory<uint16_t> halves;
        Rows input = {};
        Rows output = {};
        input.width = segments[0].num_inputs;
        input.floats = const_cast<float*>(x);
        output.floats = y;
        const size_t count = size_t(num_rows);
        for (int s = 0; s < num_segments; ++s) {
            output.width += segments[s].num_outputs;
            if (segments[s].is_quantised()) {
                input.codes = codes.reserve(count * size_t(input.width));
                input.scales = scales.reserve(count * size_t(input.num_groups()) * kGroupScales);
                input.totals = totals.reserve(count * size_t(input.num_groups()) * kGroupScales);
                input.sums = sums.reserve(count * size_t(input.num_groups()));
            }
            if (segments[s].form == Form::bf16) input.halves = halves.reserve(count * size_t(input.half_width()));
        }
        const Product product = {segments, num_segments, bias, nullptr, Activation::none, false};
        static_cast<Threads*>(threads)->run([&](Crew& crew) {
            crew.share(num_rows, 1, [&](int64_t row) { kernels->represent(input, int(row), 0, input.width); });
            crew.share(product.num_tiles(), 1, [&](int64_t tile) {
                kernels->product(product, input, int(tile), 0, num_rows, output);
            });
        });
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
    return kOk;
}

}  // extern "C"
