// Drawing a token. Nearly all of a vocabulary is unlikely, so most of it is only looked at by the largest score of each
// block: the best few hundred are found in a few blocks and sorted, more are asked for where they don't reach.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "sampling.h"
#include "simd.h"

namespace janus::JANUS_VARIANT {

constexpr float kNothing = -INFINITY;
constexpr int kFirstCandidates = 64;
constexpr int kBins = 1024;

// Eight doubles.
#if defined(__AVX512F__)
struct D {
    __m512d v;
};
inline D set(double x) { return {_mm512_set1_pd(x)}; }
inline D load_wide(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
inline void store(double* p, D a) { _mm512_storeu_pd(p, a.v); }
inline D add(D a, D b) { return {_mm512_add_pd(a.v, b.v)}; }
inline D sub(D a, D b) { return {_mm512_sub_pd(a.v, b.v)}; }
inline D mul(D a, D b) { return {_mm512_mul_pd(a.v, b.v)}; }
inline D max(D a, D b) { return {_mm512_max_pd(a.v, b.v)}; }
inline D fma(D a, D b, D c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
// a times 2 to the low bits of b.
inline D times_power(D a, D b) {
    return {_mm512_castsi512_pd(
        _mm512_add_epi64(_mm512_castpd_si512(a.v), _mm512_slli_epi64(_mm512_castpd_si512(b.v), 52)))};
}
#elif defined(__AVX2__)
struct D {
    __m256d a, b;
};
inline D set(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
inline D load_wide(const float* p) {
    return {_mm256_cvtps_pd(_mm_loadu_ps(p)), _mm256_cvtps_pd(_mm_loadu_ps(p + 4))};
}
inline void store(double* p, D x) {
    _mm256_storeu_pd(p, x.a);
    _mm256_storeu_pd(p + 4, x.b);
}
inline D add(D x, D y) { return {_mm256_add_pd(x.a, y.a), _mm256_add_pd(x.b, y.b)}; }
inline D sub(D x, D y) { return {_mm256_sub_pd(x.a, y.a), _mm256_sub_pd(x.b, y.b)}; }
inline D mul(D x, D y) { return {_mm256_mul_pd(x.a, y.a), _mm256_mul_pd(x.b, y.b)}; }
inline D max(D x, D y) { return {_mm256_max_pd(x.a, y.a), _mm256_max_pd(x.b, y.b)}; }
inline D fma(D x, D y, D z) { return {_mm256_fmadd_pd(x.a, y.a, z.a), _mm256_fmadd_pd(x.b, y.b, z.b)}; }
inline __m256d times_power(__m256d x, __m256d y) {
    return _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(x), _mm256_slli_epi64(_mm256_castpd_si256(y), 52)));
}
inline D times_power(D x, D y) { return {times_power(x.a, y.a), times_power(x.b, y.b)}; }
#else
struct D {
    double v[8];
};
#define JANUS_EIGHT for (int i = 0; i < 8; ++i)
inline D set(double x) {
    D r;
    JANUS_EIGHT r.v[i] = x;
    return r;
}
inline D load_wide(const float* p) {
    D r;
    JANUS_EIGHT r.v[i] = double(p[i]);
    return r;
}
inline void store(double* p, D x) { std::memcpy(p, x.v, sizeof x.v); }
inline D add(D x, D y) {
    JANUS_EIGHT x.v[i] += y.v[i];
    return x;
}
inline D sub(D x, D y) {
    JANUS_EIGHT x.v[i] -= y.v[i];
    return x;
}
inline D mul(D x, D y) {
    JANUS_EIGHT x.v[i] *= y.v[i];
    return x;
}
inline D max(D x, D y) {
    JANUS_EIGHT x.v[i] = x.v[i] > y.v[i] ? x.v[i] : y.v[i];
    return x;
}
inline D fma(D x, D y, D z) {
    JANUS_EIGHT z.v[i] += x.v[i] * y.v[i];
    return z;
}
inline D times_power(D x, D y) {
    int64_t a[8], b[8];
    std::memcpy(a, x.v, sizeof a);
    std::memcpy(b, y.v, sizeof b);
    JANUS_EIGHT a[i] += int64_t(uint64_t(b[i]) << 52);
    std::memcpy(x.v, a, sizeof a);
    return x;
}
#undef JANUS_EIGHT
#endif

// 2^y for y from minus infinity to 0, to 1e-15 of itself and exact for 0; what lies below 2^-1000 is 2^-1000. The
// polynomial is (2^r - 1) / r at Chebyshev's points.
inline D power_of_two(D y) {
    const D shift = set(6755399441055744.0);  // 1.5 * 2^52: a sum with it has the whole part in its low bits
    y = max(y, set(-1000.0));
    const D whole = add(y, shift);
    const D r = sub(y, sub(whole, shift));
    D q = set(7.070977866508138e-09);
    q = fma(q, r, set(1.0205905413765595e-07));
    q = fma(q, r, set(1.3215451633221434e-06));
    q = fma(q, r, set(1.5252672924850737e-05));
    q = fma(q, r, set(1.5403530424776529e-04));
    q = fma(q, r, set(1.3333558200794592e-03));
    q = fma(q, r, set(9.618129107618665e-03));
    q = fma(q, r, set(5.550410866465167e-02));
    q = fma(q, r, set(2.4022650695910075e-01));
    q = fma(q, r, set(6.931471805599462e-01));
    return times_power(fma(q, r, set(1.0)), whole);
}

// How scores become weights: shares of the likeliest's.
struct Weighing {
    double largest;
    double scale;  // of a difference, to a power of two

    Weighing(float most, double temperature) : largest(double(most)), scale(1.4426950408889634 / temperature) {
        if (!(scale < 1e300)) scale = 1e300;
    }
    D operator()(const float* scores) const {
        return power_of_two(mul(sub(load_wide(scores), set(largest)), set(scale)));
    }
};

// The largest score of each block, and of all; NaN where there is one.
inline float look_over(const float* scores, int count, float* largest) {
    F bad = zero();
    float most = kNothing;
    for (int begin = 0; begin < count; begin += kScoreBlock) {
        F m = set(kNothing);
        for (int i = begin; i < begin + kScoreBlock && i < count; i += kLanes) {
            const bool is_whole = i + kLanes <= count;
            const F x = is_whole ? load(scores + i) : keep(load(scores + i, count - i), count - i, kNothing);
            m = max(m, x);
            // A product with 0 is no number for infinities and for what is none.
            bad = fma(is_whole ? x : load(scores + i, count - i), zero(), bad);
        }
        const float of_block = janus::JANUS_VARIANT::largest(m);
        largest[begin / kScoreBlock] = of_block;
        if (of_block > most) most = of_block;
    }
    const float doubt = sum(bad);
    if (doubt == doubt) return most;
    int is_bad = 0;
    for (int i = 0; i < count; ++i) is_bad |= scores[i] != scores[i];
    return is_bad ? NAN : most;
}

inline double weigh_all(const float* scores, int count, const float* largest, const Weighing& weighing) {
    // Blocks that could not change the sum, all together, are left out.
    const double least = weighing.largest - 64.0 / weighing.scale;
    D sums = set(0.0);
    for (int begin = 0; begin < count; begin += kScoreBlock) {
        if (!(double(largest[begin / kScoreBlock]) >= least)) continue;
        const int end = begin + kScoreBlock < count ? begin + kScoreBlock : count;
        int i = begin;
        for (; i + 8 <= end; i += 8) sums = add(sums, weighing(scores + i));
        if (i < end) {
            float rest[8];
            for (int j = 0; j < 8; ++j) rest[j] = i + j < end ? scores[i + j] : kNothing;
            sums = add(sums, weighing(rest));
        }
    }
    double lanes[8];
    store(lanes, sums);
    double total = 0;
    for (int i = 0; i < 8; ++i) total += lanes[i];
    return total;
}

// How far below the largest a score lies, in bins. Never smaller for a smaller score.
struct Depth {
    float largest;
    float scale;

    float operator()(float score) const { return (largest - score) * scale; }
    int bin(float score) const {
        const float depth = (*this)(score);
        return depth < float(kBins - 1) ? int(depth) : kBins - 1;
    }
};

// The number of bins that hold at least `wanted` of the values, or all that are any.
inline int bins_for(const Depth& depth, const float* values, int count, int wanted) {
    int32_t bins[kBins] = {};
    for (int i = 0; i < count; ++i)
        if (values[i] > kNothing) ++bins[depth.bin(values[i])];
    int bin = 0;
    for (int found = 0; bin < kBins && found < wanted; ++bin) found += bins[bin];
    return bin;
}

// Likelier first, then the lower id: ascending.
inline uint64_t candidate(float score, int id) {
    score += 0.0f;  // minus zero is zero
    uint32_t bits;
    std::memcpy(&bits, &score, sizeof bits);
    const uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return uint64_t(~ascending) << 32 | uint32_t(id);
}
inline int id_of(uint64_t candidate) { return int(uint32_t(candidate)); }

// Sorts candidates that stand in order of their ids. Returns where they are then: in one or the other.
inline uint64_t* sorted(uint64_t* values, uint64_t* other, int count) {
    if (count <= 32) {
        for (int i = 1; i < count; ++i) {
            const uint64_t value = values[i];
            int at = i;
            for (; at > 0 && values[at - 1] > value; --at) values[at] = values[at - 1];
            values[at] = value;
        }
        return values;
    }
    int32_t starts[4][256] = {};
    for (int i = 0; i < count; ++i)
        for (int digit = 0; digit < 4; ++digit) ++starts[digit][values[i] >> (32 + 8 * digit) & 255];
    for (int digit = 0; digit < 4; ++digit) {
        int32_t* start = starts[digit];
        if (start[values[0] >> (32 + 8 * digit) & 255] == count) continue;
        int32_t next = 0;
        for (int i = 0; i < 256; ++i) {
            const int32_t here = start[i];
            start[i] = next;
            next += here;
        }
        for (int i = 0; i < count; ++i) other[start[values[i] >> (32 + 8 * digit) & 255]++] = values[i];
        uint64_t* const swapped = values;
        values = other;
        other = swapped;
    }
    return values;
}

struct Candidates {
    const uint64_t* sorted;
    int count;
};

// The `wanted` likeliest scores that are any; fewer where there are no more.
inline Candidates likeliest_scores(const float* scores, int count, const SamplerRoom& room, float most, int wanted) {
    const int num_blocks = (count + kScoreBlock - 1) / kScoreBlock;
    float least = most;
    for (int i = 0; i < num_blocks; ++i)
        if (room.largest[i] > kNothing && room.largest[i] < least) least = room.largest[i];
    const float range = most - least;
    const Depth depth = {most, range > 0 ? float(kBins - 1) / range : 0.0f};
    // Blocks whose largest lie in so many bins have as many scores there at least.
    const bool is_few = wanted <= num_blocks / 2;
    const int num_bins = is_few ? bins_for(depth, room.largest, num_blocks, wanted)
                                : bins_for(depth, scores, count, wanted);
    const float limit = num_bins < kBins ? float(num_bins) : INFINITY;
    const bool is_every = num_bins >= kBins;
    int found = 0;
    for (int block = 0; block < num_blocks; ++block) {
        if (!is_every && !(depth(room.largest[block]) < limit)) continue;
        const int end = (block + 1) * kScoreBlock < count ? (block + 1) * kScoreBlock : count;
        for (int i = block * kScoreBlock; i < end; ++i)
            if (scores[i] > kNothing && (is_every || depth(scores[i]) < limit))
                room.candidates[found++] = candidate(scores[i], i);
    }
    const uint64_t* const in_order = sorted(room.candidates, room.spare, found);
    return {in_order, found < wanted ? found : wanted};
}

// room.cumulative[i]: the weights of the first i + 1 candidates together. Returns how many weigh at least `min_weight`.
inline int accumulate(const Candidates& found, const float* scores, const Weighing& weighing, double min_weight,
                      const SamplerRoom& room) {
    double total = 0;
    int num_heavy = 0;
    for (int begin = 0; begin < found.count; begin += 8) {
        float eight[8];
        double weights[8];
        for (int i = 0; i < 8; ++i)
            eight[i] = begin + i < found.count ? scores[id_of(found.sorted[begin + i])] : kNothing;
        store(weights, weighing(eight));
        for (int i = 0; i < 8 && begin + i < found.count; ++i) {
            total += weights[i];
            room.cumulative[begin + i] = total;
            num_heavy += weights[i] >= min_weight;
        }
    }
    return num_heavy;
}

// How many of the sums stand before the first that is at least `value`, or above it.
inline int num_below(const double* sums, int count, double value, bool is_equal_below) {
    int low = 0;
    while (count > 0) {
        const int half = count / 2;
        if (sums[low + half] < value || (is_equal_below && sums[low + half] == value)) {
            low += half + 1;
            count -= half + 1;
        } else {
            count = half;
        }
    }
    return low;
}

inline int draw(const SampledRow& row, const float* scores, int count, float most, const SamplerRoom& room) {
    const Weighing weighing(most, row.temperature);
    const bool has_top_k = row.top_k > 0 && row.top_k < count;
    const double total = has_top_k || row.min_p > 0 ? 0.0 : weigh_all(scores, count, room.largest, weighing);
    int wanted = has_top_k ? row.top_k : kFirstCandidates;
    for (;; wanted *= 8) {
        if (wanted > count) wanted = count;
        const Candidates found = likeliest_scores(scores, count, room, most, wanted);
        const bool is_all = has_top_k || found.count < wanted || wanted == count;
        int kept = accumulate(found, scores, weighing, row.min_p, room);
        const double* const cumulative = room.cumulative;
        double mass = has_top_k ? cumulative[found.count - 1] : total;
        if (row.min_p > 0) {
            if (kept == found.count && !is_all) continue;
            kept = kept > 1 ? kept : 1;
            mass = cumulative[kept - 1];
        } else {
            kept = found.count;
        }
        if (row.top_p < 1) {
            const int num_inside = num_below(cumulative, kept, row.top_p * mass, false);
            if (num_inside == kept && row.min_p <= 0 && !is_all) continue;
            kept = num_inside < kept ? num_inside + 1 : kept;
            mass = cumulative[kept - 1];
        } else if (row.min_p <= 0 && !is_all && !(row.chance * mass < cumulative[kept - 1])) {
            continue;
        }
        // Rounding never reaches past the last that adds anything.
        const double last = std::nextafter(cumulative[kept - 1], 0.0);
        const double point = row.chance * mass < last ? row.chance * mass : last;
        return id_of(found.sorted[num_below(cumulative, kept, point, true)]);
    }
}

inline void penalise(const SampledRow& row, float* scores, int32_t* counts) {
    const int32_t* const output = row.tokens + row.num_prompt;
    const int num_output = row.num_tokens - row.num_prompt;
    for (int i = 0; i < num_output; ++i) ++counts[output[i]];
    // A token is through when its count is -1.
    for (int i = 0; i < row.num_tokens; ++i) {
        const int32_t token = row.tokens[i];
        const int32_t count = counts[token];
        if (count < 0) continue;
        float& score = scores[token];
        score = score > 0 ? score / row.repetition_penalty : score * row.repetition_penalty;
        if (count > 0) score -= float(double(count) * row.frequency_penalty + row.presence_penalty);
        counts[token] = -1;
    }
    for (int i = 0; i < row.num_tokens; ++i) counts[row.tokens[i]] = 0;
}

inline void forbid_others(const uint32_t* allowed, float* scores, int count) {
    for (int begin = 0; begin < count; begin += 32) {
        const uint32_t word = allowed[begin / 32];
        if (word == 0xffffffffu) continue;
        const int end = begin + 32 < count ? begin + 32 : count;
#if defined(__AVX512F__)
        if (end - begin == 32) {
            const __m512 nothing = _mm512_set1_ps(kNothing);
            _mm512_mask_storeu_ps(scores + begin, __mmask16(~word), nothing);
            _mm512_mask_storeu_ps(scores + begin + 16, __mmask16(~word >> 16), nothing);
            continue;
        }
#endif
        for (int i = begin; i < end; ++i)
            if (!(word >> (i - begin) & 1)) scores[i] = kNothing;
    }
}

// One row, in one thread's room.
inline Drawn sample(const SampledRow& row, int count, const SamplerRoom& room) {
    Drawn drawn = {0.0, row.given, DrawStatus::drawn};
    const float most = look_over(row.scores, count, room.largest);
    if (!(most > kNothing && most < INFINITY)) return {0.0, -1, DrawStatus::no_numbers};
    const bool wants_logprobs = row.num_top >= 0;
    double log_total = 0;
    if (wants_logprobs) {
        log_total = std::log(weigh_all(row.scores, count, room.largest, Weighing(most, 1.0)));
        if (row.num_top > 0) {
            const Candidates found = likeliest_scores(row.scores, count, room, most, row.num_top);
            for (int i = 0; i < row.num_top; ++i) {
                row.top[i] = i < found.count ? id_of(found.sorted[i]) : -1;
                if (i < found.count) row.top_logprobs[i] = double(row.scores[row.top[i]]) - double(most) - log_total;
            }
        }
    }
    if (row.given < 0) {
        const float* scores = row.scores;
        float most_now = most;
        if (row.num_tokens > 0 || row.num_biased > 0 || row.num_banned > 0 || row.allowed) {
            float* const adjusted = room.adjusted;
            std::memcpy(adjusted, scores, size_t(count) * sizeof(float));
            if (row.num_tokens > 0) penalise(row, adjusted, room.counts);
            for (int i = 0; i < row.num_biased; ++i) adjusted[row.biased[i]] += row.bias[i];
            for (int i = 0; i < row.num_banned; ++i) adjusted[row.banned[i]] = kNothing;
            if (row.allowed) forbid_others(row.allowed, adjusted, count);
            most_now = look_over(adjusted, count, room.largest);
            if (!(most_now > kNothing)) return {0.0, -1, DrawStatus::none_allowed};
            scores = adjusted;
        }
        if (row.temperature > 0) {
            drawn.token = draw(row, scores, count, most_now, room);
        } else {
            int block = 0;
            while (room.largest[block] != most_now) ++block;
            drawn.token = block * kScoreBlock;
            while (scores[drawn.token] != most_now) ++drawn.token;
        }
    }
    if (wants_logprobs) drawn.logprob = double(row.scores[drawn.token]) - double(most) - log_total;
    return drawn;
}

}  // namespace janus::JANUS_VARIANT
