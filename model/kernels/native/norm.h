// Layer norm and RMS norm of a row, and what its readers ask for of it.
#pragma once

#include "operations.h"
#include "represent.h"

namespace janus::JANUS_VARIANT {

inline void norm(const Norm& norm, const Rows& input, int from, const Rows& output, int to) {
    const int width = input.width;
    const float* x = input.floats + int64_t(from) * width;
    float* y = output.floats + int64_t(to) * width;
    float mean = 0.0f;
    if (norm.takes_mean) {
        F sums = zero();
        for (int i = 0; i < width; i += kLanes) sums = add(sums, load(x + i, width - i < kLanes ? width - i : kLanes));
        mean = sum(sums) / float(width);
    }
    F squares = zero();
    for (int i = 0; i < width; i += kLanes) {
        const int n = width - i < kLanes ? width - i : kLanes;
        const F centred = keep(sub(load(x + i, n), set(mean)), n, 0.0f);
        squares = fma(centred, centred, squares);
    }
    const F inverse = set(1.0f / std::sqrt(sum(squares) / float(width) + norm.epsilon));
    for (int i = 0; i < width; i += kLanes) {
        const int n = width - i < kLanes ? width - i : kLanes;
        F centred = mul(mul(sub(load(x + i, n), set(mean)), inverse), load(norm.weight + i, n));
        if (norm.bias) centred = add(centred, load(norm.bias + i, n));
        store(y + i, centred, n);
    }
    represent(output, to, 0, width);
}

}  // namespace janus::JANUS_VARIANT
