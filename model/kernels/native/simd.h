// Sixteen numbers at a time, in whatever registers the variant has: one of AVX-512, two of AVX2, an array elsewhere.
//
// Everything here is inside the variant's own namespace, so that no linker takes one variant's code for another's. No
// operation is left to the compiler's choice of contraction: a fused product is asked for by name, and the build turns the
// rest off, because the same row must give the same bytes in every loop that it may pass through.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace janus::JANUS_VARIANT {

constexpr int kLanes = 16;

#if defined(__AVX512F__)

struct F {
    __m512 v;
};
struct I {
    __m512i v;
};

inline F zero() { return {_mm512_setzero_ps()}; }
inline F set(float x) { return {_mm512_set1_ps(x)}; }
inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
inline F load(const float* p, int n) { return {_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p)}; }
inline void store(float* p, F a, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), a.v); }
inline F add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
// What is left of the first n lanes; the others are `other`.
inline F keep(F a, int n, float other) {
    return {_mm512_mask_blend_ps(__mmask16((1u << n) - 1), _mm512_set1_ps(other), a.v)};
}
inline float sum(F a) { return _mm512_reduce_add_ps(a.v); }
inline float largest(F a) { return _mm512_reduce_max_ps(a.v); }

inline I set(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline int32_t sum(I a) { return _mm512_reduce_add_epi32(a.v); }
inline I add(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I round(F a) { return {_mm512_cvtps_epi32(a.v)}; }
inline F scale_by_power_of_two(F a, I power) { return {_mm512_scalef_ps(a.v, _mm512_cvtepi32_ps(power.v))}; }
inline void store_bytes(int8_t* p, I a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
inline F from_halves(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline F from_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

#elif defined(__AVX2__)

struct F {
    __m256 a, b;
};
struct I {
    __m256i a, b;
};

inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
inline F load(const float* p, int n) {
    alignas(32) float lanes[kLanes] = {};
    std::memcpy(lanes, p, size_t(n) * sizeof(float));
    return load(lanes);
}
inline void store(float* p, F x, int n) {
    alignas(32) float lanes[kLanes];
    store(lanes, x);
    std::memcpy(p, lanes, size_t(n) * sizeof(float));
}
inline F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F abs(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline F keep(F x, int n, float other) {
    alignas(32) float lanes[kLanes];
    store(lanes, x);
    for (int i = n; i < kLanes; ++i) lanes[i] = other;
    return load(lanes);
}
inline float sum(F x) {
    __m256 s = _mm256_add_ps(x.a, x.b);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
inline float largest(F x) {
    __m256 s = _mm256_max_ps(x.a, x.b);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

inline I set(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I add(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline int32_t sum(I x) {
    const __m256i s = _mm256_add_epi32(x.a, x.b);
    __m128i q = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
}
inline F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline I round(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
// By two factors, so that powers down to the smallest numbers are reached.
inline __m256 scale_by_power_of_two(__m256 x, __m256i power) {
    const __m256i half = _mm256_srai_epi32(power, 1);
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(power, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(x, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}
inline F scale_by_power_of_two(F x, I power) {
    return {scale_by_power_of_two(x.a, power.a), scale_by_power_of_two(x.b, power.b)};
}
inline void store_bytes(int8_t* p, I x) {
    alignas(32) int32_t lanes[kLanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), x.a);
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes + 8), x.b);
    for (int i = 0; i < kLanes; ++i) p[i] = int8_t(lanes[i]);
}
inline F from_halves(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline F from_bf16(const uint16_t* p) {
    const __m256i a = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i b = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
}

#else

struct F {
    float v[kLanes];
};
struct I {
    int32_t v[kLanes];
};

#define JANUS_LANES for (int i = 0; i < kLanes; ++i)
inline F set(float x) {
    F r;
    JANUS_LANES r.v[i] = x;
    return r;
}
inline F zero() { return set(0.0f); }
inline F load(const float* p) {
    F r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
inline void store(float* p, F x) { std::memcpy(p, x.v, sizeof x.v); }
inline F load(const float* p, int n) {
    F r = zero();
    std::memcpy(r.v, p, size_t(n) * sizeof(float));
    return r;
}
inline void store(float* p, F x, int n) { std::memcpy(p, x.v, size_t(n) * sizeof(float)); }
#define JANUS_BINARY(name, expression)   \
    inline F name(F x, F y) {            \
        F r;                             \
        JANUS_LANES {                    \
            const float a = x.v[i];      \
            const float b = y.v[i];      \
            r.v[i] = expression;         \
        }                                \
        return r;                        \
    }
JANUS_BINARY(add, a + b)
JANUS_BINARY(sub, a - b)
JANUS_BINARY(mul, a * b)
JANUS_BINARY(div, a / b)
JANUS_BINARY(max, a > b ? a : b)
JANUS_BINARY(min, a < b ? a : b)
#undef JANUS_BINARY
inline F fma(F x, F y, F z) {
    JANUS_LANES z.v[i] += x.v[i] * y.v[i];
    return z;
}
inline F abs(F x) {
    JANUS_LANES x.v[i] = std::fabs(x.v[i]);
    return x;
}
inline F keep(F x, int n, float other) {
    for (int i = n; i < kLanes; ++i) x.v[i] = other;
    return x;
}
inline float sum(F x) {
    for (int step = kLanes / 2; step; step /= 2)
        for (int i = 0; i < step; ++i) x.v[i] += x.v[i + step];
    return x.v[0];
}
inline float largest(F x) {
    float r = x.v[0];
    JANUS_LANES r = x.v[i] > r ? x.v[i] : r;
    return r;
}
inline I set(int32_t x) {
    I r;
    JANUS_LANES r.v[i] = x;
    return r;
}
inline I add(I x, I y) {
    JANUS_LANES x.v[i] += y.v[i];
    return x;
}
inline int32_t sum(I x) {
    int32_t r = 0;
    JANUS_LANES r += x.v[i];
    return r;
}
inline F to_float(I x) {
    F r;
    JANUS_LANES r.v[i] = float(x.v[i]);
    return r;
}
inline I round(F x) {
    I r;
    JANUS_LANES r.v[i] = int32_t(std::nearbyint(x.v[i]));
    return r;
}
inline F scale_by_power_of_two(F x, I power) {
    JANUS_LANES x.v[i] = std::ldexp(x.v[i], power.v[i]);
    return x;
}
inline void store_bytes(int8_t* p, I x) { JANUS_LANES p[i] = int8_t(x.v[i]); }
// IEEE binary16: the exponent is moved by a product, which also makes subnormals normal.
inline float from_half(uint16_t half) {
    const uint32_t magnitude = uint32_t(half & 0x7fff) << 13;
    uint32_t bits = magnitude;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    std::memcpy(&bits, &value, sizeof bits);
    if (magnitude >= 0x0f800000) bits |= 0x7f800000;
    bits |= uint32_t(half & 0x8000) << 16;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline F from_halves(const uint16_t* p) {
    F r;
    JANUS_LANES r.v[i] = from_half(p[i]);
    return r;
}
inline F from_bf16(const uint16_t* p) {
    F r;
    JANUS_LANES {
        const uint32_t bits = uint32_t(p[i]) << 16;
        std::memcpy(&r.v[i], &bits, sizeof bits);
    }
    return r;
}
#undef JANUS_LANES

#endif

// Rounds to the nearest bf16, to even where two are as near; a NaN stays one.
inline uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float from_bf16(uint16_t half) {
    const uint32_t bits = uint32_t(half) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// e^x to 2 units in the last place; 0 for what lies below the smallest number, minus infinity included.
inline F exp(F x) {
    const F clamped = max(x, set(-104.0f));
    const F bounded = min(clamped, set(89.0f));
    const I power = round(mul(bounded, set(1.44269504f)));
    const F p = to_float(power);
    F r = fma(p, set(-0.693359375f), bounded);
    r = fma(p, set(2.12194440e-4f), r);
    F y = set(1.9875691500e-4f);
    y = fma(y, r, set(1.3981999507e-3f));
    y = fma(y, r, set(8.3334519073e-3f));
    y = fma(y, r, set(4.1665795894e-2f));
    y = fma(y, r, set(1.6666665459e-1f));
    y = fma(y, r, set(5.0000001201e-1f));
    y = fma(y, mul(r, r), add(r, set(1.0f)));
    return scale_by_power_of_two(y, power);
}

}  // namespace janus::JANUS_VARIANT
