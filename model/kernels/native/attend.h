// Attention of some query rows over a stretch of keys, and the merging of stretches.
//
// Rows, which are query rows times the query heads of one key/value head, go through in blocks whose sums stay in
// registers, so that a vector of keys or values is loaded once a block. A score is a sum over the width in its order, a
// mixture a sum over the keys that the row sees in their order: the same operations in a block of any size.
#pragma once

#include "attention.h"
#include "represent.h"
#include "simd.h"

namespace janus::JANUS_VARIANT {

#if defined(__AVX512F__)
constexpr int kBlockRows = 6;
constexpr int kBlockVectors = 4;
#elif defined(__AVX2__)
constexpr int kBlockRows = 3;
constexpr int kBlockVectors = 2;
#else
constexpr int kBlockRows = 2;
constexpr int kBlockVectors = 1;
#endif

// How keys and values lie in memory, and what they are multiplied with. A word is what 16 lanes take at a time: the same
// `kStep` inputs of 16 outputs.
struct Float32Layout {
    using Number = float;
    using Input = float;
    using Word = F;
    static constexpr int kStep = 1;

    static float narrow(float x) { return x; }
    static Word word(const Number* p) { return load(p); }
    static F dot(F acc, Word w, const Input* x) { return fma(w, set(*x), acc); }
    static F put(Input* to, F x) {
        store(to, x);
        return x;
    }
};

// Pairs of bf16. What they are multiplied with is bf16 too where there is an instruction for it, and float32 elsewhere.
struct Bf16Layout {
    using Number = uint16_t;
    static constexpr int kStep = 2;

    static uint16_t narrow(float x) { return to_bf16(x); }

#if defined(__AVX512BF16__)
    using Input = uint16_t;
    struct Word {
        __m512i v;
    };
    static Word word(const Number* p) { return {_mm512_loadu_si512(p)}; }
    // The first or the second of each pair alone; what stands in the other's place may be anything.
    static Word first_alone(Word w) { return {_mm512_and_si512(w.v, _mm512_set1_epi32(0xffff))}; }
    static Word second_alone(Word w) { return {_mm512_andnot_si512(_mm512_set1_epi32(0xffff), w.v)}; }
    static F dot(F acc, Word w, const Input* x) {
        int32_t pair;
        std::memcpy(&pair, x, sizeof pair);
        return {_mm512_dpbf16_ps(acc.v, (__m512bh)w.v, (__m512bh)_mm512_set1_epi32(pair))};
    }
    // Writes 16 inputs and gives what they have become.
    static F put(Input* to, F x) {
        const __m256i narrow = (__m256i)_mm512_cvtneps_pbh(x.v);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow);
        return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16))};
    }
#else
    using Input = float;
    struct Word {
        F first, second;
    };
#if defined(__AVX512F__)
    static Word word(const Number* p) {
        const __m512i w = _mm512_loadu_si512(p);
        return {{_mm512_castsi512_ps(_mm512_slli_epi32(w, 16))},
                {_mm512_castsi512_ps(_mm512_andnot_si512(_mm512_set1_epi32(0xffff), w))}};
    }
#elif defined(__AVX2__)
    static Word word(const Number* p) {
        const __m256i mask = _mm256_set1_epi32(0xffff);
        const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16));
        return {{_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))},
                {_mm256_castsi256_ps(_mm256_andnot_si256(mask, a)), _mm256_castsi256_ps(_mm256_andnot_si256(mask, b))}};
    }
#else
    static Word word(const Number* p) {
        Word w;
        for (int i = 0; i < kLanes; ++i) {
            w.first.v[i] = from_bf16(p[2 * i]);
            w.second.v[i] = from_bf16(p[2 * i + 1]);
        }
        return w;
    }
#endif
    static Word first_alone(Word w) { return {w.first, zero()}; }
    static Word second_alone(Word w) { return {zero(), w.second}; }
    static F dot(F acc, Word w, const Input* x) { return fma(w.second, set(x[1]), fma(w.first, set(x[0]), acc)); }
    static F put(Input* to, F x) {
        store(to, x);
        return x;
    }
#endif
};

// Asks for a line that is read a few groups later: into the second cache, which has more requests under way than the first.
inline void ask_for(const void* line) { __builtin_prefetch(line, 0, 2); }

// Sixteen keys of a page and their values.
template <typename Layout>
struct KeyGroup {
    const typename Layout::Number* keys;
    const typename Layout::Number* values;
};

// Where a key/value head of a page begins, and how far its lines are apart.
template <typename Layout>
struct Pages {
    Pages(const AttentionSpec& spec, const LayerPages& pages)
        : num_heads(spec.num_key_value_heads),
          block_size(pages.block_size),
          num_steps((spec.head_width + Layout::kStep - 1) / Layout::kStep),
          num_vectors((spec.head_width + kLanes - 1) / kLanes),
          key_line(int64_t(block_size) * Layout::kStep),
          value_line(int64_t(num_vectors) * kLanes * Layout::kStep),
          first_key(static_cast<typename Layout::Number*>(pages.keys)),
          first_value(static_cast<typename Layout::Number*>(pages.values)) {}

    typename Layout::Number* keys(int64_t block, int head) const {
        return first_key + (block * num_heads + head) * num_steps * key_line;
    }
    typename Layout::Number* values(int64_t block, int head) const {
        return first_value + (block * num_heads + head) * (block_size / Layout::kStep) * value_line;
    }

    int num_heads;
    int block_size;
    int num_steps;
    int num_vectors;
    int64_t key_line;
    int64_t value_line;
    typename Layout::Number* first_key;
    typename Layout::Number* first_value;
};

// What a block of rows needs between its three passes. Keys are counted from the stretch's start.
template <typename Layout>
struct Block {
    alignas(64) typename Layout::Input queries[kBlockRows][kMostHeadWidth];
    alignas(64) float scores[kBlockRows][kStretchKeys];
    alignas(64) typename Layout::Input shares[kBlockRows][kStretchKeys];
    alignas(64) float sums[kBlockRows][kMostHeadWidth];
    int begins[kBlockRows];
    int ends[kBlockRows];
    float peaks[kBlockRows];
    float totals[kBlockRows];
};

// The scores of some groups' keys. Pages lie anywhere, so the groups after them, up to `end_group`, are asked for meanwhile.
template <typename Layout, int num_rows, int num_groups>
inline void score(const Pages<Layout>& pages, const KeyGroup<Layout>* groups, int first_group, int end_group,
                  Block<Layout>& block) {
    F sums[num_rows][num_groups];
    for (int r = 0; r < num_rows; ++r)
        for (int g = 0; g < num_groups; ++g) sums[r][g] = zero();
    const typename Layout::Number* keys[num_groups];
    const typename Layout::Number* next_keys[num_groups];
    for (int g = 0; g < num_groups; ++g) {
        const int next = first_group + g + num_groups;
        keys[g] = groups[first_group + g].keys;
        next_keys[g] = groups[next < end_group ? next : end_group - 1].keys;
    }
    for (int k = 0; k < pages.num_steps; ++k) {
        for (int g = 0; g < num_groups; ++g) {
            const typename Layout::Word word = Layout::word(keys[g] + k * pages.key_line);
            ask_for(next_keys[g] + k * pages.key_line);
            for (int r = 0; r < num_rows; ++r)
                sums[r][g] = Layout::dot(sums[r][g], word, block.queries[r] + k * Layout::kStep);
        }
    }
    for (int r = 0; r < num_rows; ++r)
        for (int g = 0; g < num_groups; ++g) store(block.scores[r] + (first_group + g) * kLanes, sums[r][g]);
}

// From a row's scores to the shares of the keys that it sees, before they are divided by their total. Scores of other keys
// may be anything. The bias, if there is one, begins with that of the first key seen.
template <typename Layout>
inline void share(Block<Layout>& block, int r, const float* bias) {
    float* scores = block.scores[r];
    const int begin = block.begins[r];
    const int end = block.ends[r];
    const int first = begin / kLanes * kLanes;
    for (int i = first; i < begin; ++i) scores[i] = -INFINITY;
    for (int i = end; i % kLanes; ++i) scores[i] = -INFINITY;
    if (bias)
        for (int i = begin; i < end; i += kLanes) {
            const int n = end - i < kLanes ? end - i : kLanes;
            store(scores + i, add(load(scores + i, n), load(bias + i - begin, n)), n);
        }
    F peaks = set(-INFINITY);
    for (int i = first; i < end; i += kLanes) peaks = max(peaks, load(scores + i));
    const float peak = largest(peaks);
    F total = zero();
    for (int i = first; i < end; i += kLanes)
        total = add(total, Layout::put(block.shares[r] + i, exp(sub(load(scores + i), set(peak)))));
    block.peaks[r] = peak;
    block.totals[r] = sum(total);
}

// Adds the values of steps [begin, end) to rows of sums; a step is a key, or a pair of them.
template <typename Layout, int num_rows, int num_vectors>
inline void mix(const Pages<Layout>& pages, const KeyGroup<Layout>* groups, int begin, int end, int first_vector,
                int row, Block<Layout>& block) {
    constexpr int kGroupSteps = kLanes / Layout::kStep;
    constexpr int kWord = kLanes * Layout::kStep;
    constexpr int kGroupsAhead = 2;
    const int end_group = (end + kGroupSteps - 1) / kGroupSteps;
    F sums[num_rows][num_vectors];
    for (int r = 0; r < num_rows; ++r)
        for (int v = 0; v < num_vectors; ++v) sums[r][v] = load(block.sums[row + r] + (first_vector + v) * kLanes);
    while (begin < end) {
        const int group = begin / kGroupSteps;
        const int group_end = (group + 1) * kGroupSteps;
        const int stop = end < group_end ? end : group_end;
        const int next = group + kGroupsAhead < end_group ? group + kGroupsAhead : end_group - 1;
        const int64_t offset = (begin - group * kGroupSteps) * pages.value_line + first_vector * kWord;
        const typename Layout::Number* values = groups[group].values + offset;
        const typename Layout::Number* next_values = groups[next].values + offset;
        for (; begin < stop; ++begin, values += pages.value_line, next_values += pages.value_line) {
            for (int v = 0; v < num_vectors; ++v) {
                const typename Layout::Word word = Layout::word(values + v * kWord);
                ask_for(next_values + v * kWord);
                for (int r = 0; r < num_rows; ++r)
                    sums[r][v] = Layout::dot(sums[r][v], word, block.shares[row + r] + begin * Layout::kStep);
            }
        }
    }
    for (int r = 0; r < num_rows; ++r)
        for (int v = 0; v < num_vectors; ++v) store(block.sums[row + r] + (first_vector + v) * kLanes, sums[r][v]);
}

template <typename Layout, int num_rows>
inline void mix(const Pages<Layout>& pages, const KeyGroup<Layout>* groups, int begin, int end, int row,
                Block<Layout>& block) {
    int v = 0;
    for (; v + kBlockVectors <= pages.num_vectors; v += kBlockVectors)
        mix<Layout, num_rows, kBlockVectors>(pages, groups, begin, end, v, row, block);
    for (; v < pages.num_vectors; ++v) mix<Layout, num_rows, 1>(pages, groups, begin, end, v, row, block);
}

// One key of a pair whose other is not seen: nothing may be multiplied with what lies there, it could be no number.
template <typename Layout>
inline void mix_half(const Pages<Layout>& pages, const KeyGroup<Layout>* groups, int key, int row, Block<Layout>& block) {
    constexpr int kWord = kLanes * Layout::kStep;
    const typename Layout::Number* values = groups[key / kLanes].values + key % kLanes / 2 * pages.value_line;
    for (int v = 0; v < pages.num_vectors; ++v) {
        const typename Layout::Word both = Layout::word(values + v * kWord);
        const typename Layout::Word word = key % 2 ? Layout::second_alone(both) : Layout::first_alone(both);
        float* sums = block.sums[row] + v * kLanes;
        store(sums, Layout::dot(load(sums), word, block.shares[row] + key / 2 * 2));
    }
}

// Rows of a block go together over the keys that all of them see, and each alone over what it sees besides.
template <typename Layout, int num_rows>
inline void mix(const Pages<Layout>& pages, const KeyGroup<Layout>* groups, Block<Layout>& block) {
    constexpr int kStep = Layout::kStep;
    int begin = 0;
    int end = kStretchKeys;
    for (int r = 0; r < num_rows; ++r) {
        const int first = (block.begins[r] + kStep - 1) / kStep;
        const int last = block.ends[r] / kStep;
        begin = first > begin ? first : begin;
        end = last < end ? last : end;
        for (int v = 0; v < pages.num_vectors; ++v) store(block.sums[r] + v * kLanes, zero());
    }
    for (int r = 0; r < num_rows; ++r) {
        if constexpr (kStep == 2)
            if (block.begins[r] % 2) mix_half(pages, groups, block.begins[r], r, block);
        const int first = (block.begins[r] + kStep - 1) / kStep;
        const int last = block.ends[r] / kStep;
        mix<Layout, 1>(pages, groups, first, begin < last ? begin : last, r, block);
    }
    mix<Layout, num_rows>(pages, groups, begin, end, 0, block);
    for (int r = 0; r < num_rows; ++r) {
        const int last = block.ends[r] / kStep;
        mix<Layout, 1>(pages, groups, begin < end ? end : begin, last, r, block);
        if constexpr (kStep == 2)
            if (block.ends[r] % 2) mix_half(pages, groups, block.ends[r] - 1, r, block);
    }
}

// One query row of a unit with one of its heads, and what it sees of the stretch.
struct UnitRow {
    int row;
    int head;
    int64_t position;
    int begin;
    int end;
};

template <typename Layout>
struct Stretch {
    const AttentionSpec& spec;
    const AttentionBatch& batch;
    const Pages<Layout>& pages;
    const KeyGroup<Layout>* groups;
    int64_t start;
    int index;
    int64_t num_keys;
};

inline float* partial_of(const AttentionSpec& spec, const AttentionBatch& batch, int64_t row, int head, int64_t stretch) {
    const int64_t number = (row * spec.num_query_heads + head) * batch.max_stretches + stretch;
    return batch.partials + number * (2 + spec.head_width);
}

// A finished row of a head: its mixture over its total.
inline void finish(const AttentionSpec& spec, const AttentionBatch& batch, int64_t row, int head, const float* sums,
                   float total) {
    const int begin = head * spec.head_width;
    float* mixed = batch.mixed.floats + row * batch.mixed.width + begin;
    const F inverse = set(1.0f / total);
    for (int i = 0; i < spec.head_width; i += kLanes) {
        const int n = spec.head_width - i < kLanes ? spec.head_width - i : kLanes;
        // Adding a zero makes one zero of both: whether a sum ended in -0 may depend on its company.
        store(mixed + i, add(mul(load(sums + i, n), inverse), zero()), n);
    }
    if (represents_heads(spec)) represent(batch.mixed, int(row), begin, begin + spec.head_width);
}

template <typename Layout, int num_rows>
inline void attend_block(const Stretch<Layout>& stretch, const UnitRow* rows, Block<Layout>& block) {
    const AttentionSpec& spec = stretch.spec;
    const AttentionBatch& batch = stretch.batch;
    int first = kStretchKeys;
    int last = 0;
    for (int r = 0; r < num_rows; ++r) {
        block.begins[r] = rows[r].begin;
        block.ends[r] = rows[r].end;
        first = rows[r].begin < first ? rows[r].begin : first;
        last = rows[r].end > last ? rows[r].end : last;
        const float* query = batch.queries + rows[r].row * batch.query_stride + rows[r].head * spec.head_width;
        for (int i = 0; i < spec.head_width; i += kLanes) {
            const int n = spec.head_width - i < kLanes ? spec.head_width - i : kLanes;
            Layout::put(block.queries[r] + i, mul(load(query + i, n), set(spec.scale)));
        }
    }
    int g = first / kLanes;
    const int end = (last + kLanes - 1) / kLanes;
    for (; g + kBlockVectors <= end; g += kBlockVectors)
        score<Layout, num_rows, kBlockVectors>(stretch.pages, stretch.groups, g, end, block);
    for (; g < end; ++g) score<Layout, num_rows, 1>(stretch.pages, stretch.groups, g, end, block);
    for (int r = 0; r < num_rows; ++r) {
        const float* bias = nullptr;
        if (batch.bias)
            bias = batch.bias + rows[r].head * batch.bias_width + batch.bias_width / 2 + stretch.start + rows[r].begin -
                   rows[r].position;
        share(block, r, bias);
    }
    mix<Layout, num_rows>(stretch.pages, stretch.groups, block);
    for (int r = 0; r < num_rows; ++r) {
        if (is_one_stretch(seen_keys(spec, rows[r].position, stretch.num_keys))) {
            finish(spec, batch, rows[r].row, rows[r].head, block.sums[r], block.totals[r]);
            continue;
        }
        float* partial = partial_of(spec, batch, rows[r].row, rows[r].head, stretch.index);
        partial[0] = block.peaks[r];
        partial[1] = block.totals[r];
        std::memcpy(partial + 2, block.sums[r], size_t(spec.head_width) * sizeof(float));
    }
}

template <typename Layout, int num_rows = kBlockRows>
inline void attend_rows(const Stretch<Layout>& stretch, const UnitRow* rows, int count, Block<Layout>& block) {
    if (count == num_rows)
        attend_block<Layout, num_rows>(stretch, rows, block);
    else if constexpr (num_rows > 1)
        attend_rows<Layout, num_rows - 1>(stretch, rows, count, block);
}

template <typename Layout>
inline void attend_unit(const AttentionSpec& spec, const LayerPages& layer, const AttentionUnit& unit,
                        const AttentionBatch& batch) {
    const Pages<Layout> pages(spec, layer);
    const int64_t num_keys = batch.key_lengths[unit.sequence];
    const int64_t first_position = num_keys - (batch.first_rows[unit.sequence + 1] - unit.first_row);
    const int64_t start = int64_t(unit.stretch) * kStretchKeys;
    KeyGroup<Layout> groups[kStretchKeys / kLanes];
    const int64_t* blocks = batch.block_table + unit.sequence * batch.table_stride;
    const int64_t stop = num_keys < start + kStretchKeys ? num_keys : start + kStretchKeys;
    const int64_t seen_from = seen_keys(spec, first_position, num_keys).begin;
    const int64_t from = seen_from > start ? seen_from / kLanes * kLanes : start;
    for (int64_t key = from; key < stop; key += kLanes) {
        const int64_t page = blocks[key / pages.block_size];
        const int64_t offset = key % pages.block_size;
        groups[(key - start) / kLanes] = {
            pages.keys(page, unit.key_value_head) + offset * Layout::kStep,
            pages.values(page, unit.key_value_head) + offset / Layout::kStep * pages.value_line,
        };
    }
    const Stretch<Layout> stretch = {spec, batch, pages, groups, start, unit.stretch, num_keys};
    const int group = spec.num_query_heads / spec.num_key_value_heads;
    Block<Layout> block;
    UnitRow rows[kBlockRows];
    // Blocks of sizes that differ by one at most, of the rows that see anything here.
    int left = 0;
    for (int i = 0; i < unit.num_rows; ++i) {
        const KeyRange seen = seen_keys(spec, first_position + i, num_keys);
        left += seen.begin < start + kStretchKeys && seen.end > start ? group : 0;
    }
    int count = 0;
    for (int i = 0; i < unit.num_rows; ++i) {
        const KeyRange seen = seen_keys(spec, first_position + i, num_keys);
        if (seen.begin >= start + kStretchKeys || seen.end <= start) continue;
        const int begin = int(seen.begin > start ? seen.begin - start : 0);
        const int end = int(seen.end < start + kStretchKeys ? seen.end - start : kStretchKeys);
        for (int h = 0; h < group; ++h) {
            rows[count++] = {unit.first_row + i, unit.key_value_head * group + h, first_position + i, begin, end};
            const int num_blocks = (left + kBlockRows - 1) / kBlockRows;
            if (count < (left + num_blocks - 1) / num_blocks) continue;
            attend_rows<Layout>(stretch, rows, count, block);
            left -= count;
            count = 0;
        }
    }
}

inline void attend(const AttentionSpec& spec, const LayerPages& pages, const AttentionUnit& unit,
                   const AttentionBatch& batch) {
    switch (pages.type) {
        case CacheType::float32:
            return attend_unit<Float32Layout>(spec, pages, unit, batch);
        case CacheType::bf16:
            return attend_unit<Bf16Layout>(spec, pages, unit, batch);
    }
}

// The index of the sequence that a row belongs to.
inline int sequence_of(const AttentionBatch& batch, int row) {
    int low = 0;
    for (int high = batch.num_sequences; high - low > 1;) {
        const int middle = (low + high) / 2;
        (batch.first_rows[middle] <= row ? low : high) = middle;
    }
    return low;
}

// Finishes a row of a head that has seen keys of several stretches.
inline void merge(const AttentionSpec& spec, const AttentionBatch& batch, int row, int head) {
    const int s = sequence_of(batch, row);
    const int64_t num_keys = batch.key_lengths[s];
    const KeyRange seen = seen_keys(spec, num_keys - (batch.first_rows[s + 1] - row), num_keys);
    if (is_one_stretch(seen)) return;
    const int64_t first = seen.begin / kStretchKeys;
    const int64_t last = (seen.end - 1) / kStretchKeys;
    float peak = -INFINITY;
    for (int64_t stretch = first; stretch <= last; ++stretch) {
        const float other = partial_of(spec, batch, row, head, stretch)[0];
        peak = other > peak ? other : peak;
    }
    alignas(64) float sums[kMostHeadWidth] = {};
    float total = 0.0f;
    for (int64_t stretch = first; stretch <= last; ++stretch) {
        const float* partial = partial_of(spec, batch, row, head, stretch);
        const F weight = exp(sub(set(partial[0]), set(peak)));
        float weights[kLanes];
        store(weights, weight);
        total += weights[0] * partial[1];
        for (int i = 0; i < spec.head_width; i += kLanes) {
            const int n = spec.head_width - i < kLanes ? spec.head_width - i : kLanes;
            store(sums + i, fma(load(partial + 2 + i, n), weight, load(sums + i)));
        }
    }
    finish(spec, batch, row, head, sums, total);
}

template <typename Layout>
inline void store_heads(const AttentionSpec& spec, const LayerPages& layer, int64_t slot, int begin, int end,
                        const float* key, const float* value) {
    constexpr int kStep = Layout::kStep;
    const Pages<Layout> pages(spec, layer);
    const int64_t page = slot / pages.block_size;
    const int64_t offset = slot % pages.block_size;
    for (int head = begin; head < end; ++head, key += spec.head_width, value += spec.head_width) {
        typename Layout::Number* keys = pages.keys(page, head) + offset * kStep;
        typename Layout::Number* values =
            pages.values(page, head) + offset / kStep * pages.value_line + offset % kStep;
        typename Layout::Number narrow[kMostHeadWidth];
        for (int i = 0; i < spec.head_width; ++i) narrow[i] = Layout::narrow(key[i]);
        for (int i = 0; i < spec.head_width; ++i) keys[i / kStep * pages.key_line + i % kStep] = narrow[i];
        if (spec.head_width % kStep) keys[spec.head_width / kStep * pages.key_line + 1] = 0;
        for (int i = 0; i < spec.head_width; ++i) narrow[i] = Layout::narrow(value[i]);
        for (int i = 0; i < spec.head_width; ++i) values[i * kStep] = narrow[i];
    }
}

// A token's keys and values of heads [begin, end), side by side, into its slot.
inline void store_token(const AttentionSpec& spec, const LayerPages& pages, int64_t slot, int begin, int end,
                        const float* key, const float* value) {
    switch (pages.type) {
        case CacheType::float32:
            return store_heads<Float32Layout>(spec, pages, slot, begin, end, key, value);
        case CacheType::bf16:
            return store_heads<Bf16Layout>(spec, pages, slot, begin, end, key, value);
    }
}

}  // namespace janus::JANUS_VARIANT
