// The non-linearities of the feed-forward layers.
#pragma once

#include "operations.h"
#include "simd.h"

namespace janus::JANUS_VARIANT {

inline F sigmoid(F x) { return div(set(1.0f), add(set(1.0f), exp(sub(zero(), x)))); }

// 1 - 2 / (e^2x + 1), which goes to -1 and 1 without an overflow.
inline F tanh(F x) { return sub(set(1.0f), div(set(2.0f), add(exp(add(x, x)), set(1.0f)))); }

// A ratio of two polynomials in x^2 (minimax over [-4, 4], beyond which float32 has no more than 1 to say).
inline F erf(F x) {
    const F bounded = max(min(x, set(4.0f)), set(-4.0f));
    const F square = mul(bounded, bounded);
    F above = set(-2.72614225801306e-10f);
    above = fma(above, square, set(2.77068142495902e-08f));
    above = fma(above, square, set(-2.10102402082508e-06f));
    above = fma(above, square, set(-5.69250639462346e-05f));
    above = fma(above, square, set(-7.34990630326855e-04f));
    above = fma(above, square, set(-2.95459980854025e-03f));
    above = fma(above, square, set(-1.60960333262415e-02f));
    F below = set(-1.45660718464996e-05f);
    below = fma(below, square, set(-2.13374055278905e-04f));
    below = fma(below, square, set(-1.68282697438203e-03f));
    below = fma(below, square, set(-7.37332916720468e-03f));
    below = fma(below, square, set(-1.42647390514189e-02f));
    return div(mul(bounded, above), below);
}

inline F activate(Activation activation, F x) {
    switch (activation) {
        case Activation::gelu:
            return mul(mul(set(0.5f), x), add(set(1.0f), erf(mul(x, set(0.70710678f)))));
        case Activation::gelu_tanh: {
            const F cube = mul(mul(x, x), x);
            const F inner = mul(set(0.79788456f), fma(set(0.044715f), cube, x));
            return mul(mul(set(0.5f), x), add(set(1.0f), tanh(inner)));
        }
        case Activation::relu:
            return max(x, zero());
        case Activation::silu:
            return mul(x, sigmoid(x));
        case Activation::tanh:
            return tanh(x);
        case Activation::none:
            break;
    }
    return x;
}

}  // namespace janus::JANUS_VARIANT
