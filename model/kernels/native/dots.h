// Dot products of 16 outputs at a time with inputs that all of them share.
#pragma once

#include "simd.h"

namespace janus::JANUS_VARIANT {

// 64 codes: 16 outputs of 4 neighbouring inputs.
#if defined(__AVX512F__)

struct Codes {
    __m512i v;
};
inline Codes load_codes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Codes low_nibbles(Codes w) { return {_mm512_and_si512(w.v, _mm512_set1_epi8(0x0f))}; }
inline Codes high_nibbles(Codes w) {
    return {_mm512_and_si512(_mm512_srli_epi16(w.v, 4), _mm512_set1_epi8(0x0f))};
}

#elif defined(__AVX2__)

struct Codes {
    __m256i a, b;
};
inline Codes load_codes(const uint8_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline Codes low_nibbles(Codes w) {
    const __m256i mask = _mm256_set1_epi8(0x0f);
    return {_mm256_and_si256(w.a, mask), _mm256_and_si256(w.b, mask)};
}
inline Codes high_nibbles(Codes w) {
    const __m256i mask = _mm256_set1_epi8(0x0f);
    return {_mm256_and_si256(_mm256_srli_epi16(w.a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(w.b, 4), mask)};
}

#else

struct Codes {
    uint8_t v[64];
};
inline Codes load_codes(const uint8_t* p) {
    Codes w;
    std::memcpy(w.v, p, sizeof w.v);
    return w;
}
inline Codes low_nibbles(Codes w) {
    for (uint8_t& code : w.v) code &= 0x0f;
    return w;
}
inline Codes high_nibbles(Codes w) {
    for (uint8_t& code : w.v) code >>= 4;
    return w;
}

#endif

inline int32_t four_inputs(const int8_t* x) {
    int32_t word;
    std::memcpy(&word, x, sizeof word);
    return word;
}

// acc + codes . x, exactly. `is_narrow` promises codes up to 127.
#if defined(__AVX512VNNI__)

template <bool is_narrow>
inline I dot(I acc, Codes w, const int8_t* x) {
    return {_mm512_dpbusd_epi32(acc.v, w.v, _mm512_set1_epi32(four_inputs(x)))};
}

#elif defined(__AVXVNNI__)

template <bool is_narrow>
inline I dot(I acc, Codes w, const int8_t* x) {
    const __m256i inputs = _mm256_set1_epi32(four_inputs(x));
    return {_mm256_dpbusd_avx_epi32(acc.a, w.a, inputs), _mm256_dpbusd_avx_epi32(acc.b, w.b, inputs)};
}

#elif defined(__AVX2__)

// Pairs of products are added in 16 bits, which holds two of 127 * 128. Wider codes lose their top bit to a second sum.
inline __m256i pairs(__m256i w, __m256i x) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1));
}
template <bool is_narrow>
inline __m256i dot(__m256i acc, __m256i w, __m256i x) {
    if constexpr (is_narrow) return _mm256_add_epi32(acc, pairs(w, x));
    const __m256i top = _mm256_and_si256(_mm256_srli_epi16(w, 7), _mm256_set1_epi8(1));
    acc = _mm256_add_epi32(acc, pairs(_mm256_and_si256(w, _mm256_set1_epi8(0x7f)), x));
    return _mm256_add_epi32(acc, _mm256_slli_epi32(pairs(top, x), 7));
}
template <bool is_narrow>
inline I dot(I acc, Codes w, const int8_t* x) {
    const __m256i inputs = _mm256_set1_epi32(four_inputs(x));
    return {dot<is_narrow>(acc.a, w.a, inputs), dot<is_narrow>(acc.b, w.b, inputs)};
}

#else

template <bool is_narrow>
inline I dot(I acc, Codes w, const int8_t* x) {
    for (int i = 0; i < kLanes; ++i)
        for (int k = 0; k < 4; ++k) acc.v[i] += int32_t(w.v[4 * i + k]) * x[k];
    return acc;
}

#endif

// acc + pairs . x for 16 pairs of bf16 with one pair that all share.
#if defined(__AVX512BF16__)

inline F dot_pairs(F acc, const uint16_t* pairs, const uint16_t* x) {
    int32_t word;
    std::memcpy(&word, x, sizeof word);
    const __m512i w = _mm512_loadu_si512(pairs);
    return {_mm512_dpbf16_ps(acc.v, (__m512bh)w, (__m512bh)_mm512_set1_epi32(word))};
}

#elif defined(__AVX512F__)

inline F dot_pairs(F acc, const uint16_t* pairs, const uint16_t* x) {
    const __m512i w = _mm512_loadu_si512(pairs);
    const F first = {_mm512_castsi512_ps(_mm512_slli_epi32(w, 16))};
    const F second = {_mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(int32_t(0xffff0000))))};
    return fma(second, set(from_bf16(x[1])), fma(first, set(from_bf16(x[0])), acc));
}

#elif defined(__AVX2__)

inline F dot_pairs(F acc, const uint16_t* pairs, const uint16_t* x) {
    const __m256i mask = _mm256_set1_epi32(int32_t(0xffff0000));
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs + 16));
    const F first = {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
    const F second = {_mm256_castsi256_ps(_mm256_and_si256(a, mask)), _mm256_castsi256_ps(_mm256_and_si256(b, mask))};
    return fma(second, set(from_bf16(x[1])), fma(first, set(from_bf16(x[0])), acc));
}

#else

inline F dot_pairs(F acc, const uint16_t* pairs, const uint16_t* x) {
    const float first = from_bf16(x[0]);
    const float second = from_bf16(x[1]);
    for (int i = 0; i < kLanes; ++i) {
        acc.v[i] += from_bf16(pairs[2 * i]) * first;
        acc.v[i] += from_bf16(pairs[2 * i + 1]) * second;
    }
    return acc;
}

#endif

}  // namespace janus::JANUS_VARIANT
