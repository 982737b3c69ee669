// Attention over pages of keys and values, for rows of any sequences in any chunking.
//
// A layer's cache has pages of `block_size` tokens, a multiple of 16. In a page, each key/value head has its keys and its
// values in the order in which attention reads them, sixteen keys side by side, so that scores need no sum across lanes:
//
//   bf16     keys [pairs of the width][block][2]   values [block / 2][padded width][2]
//   float32  keys [width][block]                   values [block][padded width]
//
// An odd width's last pair holds a 0; values are padded to a multiple of 16, with whatever lies there.
//
// What a query gets must not depend on which rows share its batch, its chunk or its unit: keys are taken in stretches that
// begin at fixed positions, a stretch leaves a maximum, a sum and a mixture, and stretches are merged in their order. A row
// that sees keys of one stretch alone is finished by it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rows.h"

namespace janus {

constexpr int kStretchKeys = 512;
constexpr int kMostHeadWidth = 256;

struct AttentionSpec {
    int32_t num_query_heads;
    int32_t num_key_value_heads;
    int32_t head_width;
    float scale;
    int32_t is_causal;
    int32_t window;  // below 0: none

    bool operator==(const AttentionSpec&) const = default;
};

enum class CacheType : int32_t { float32 = 0, bf16 = 1 };

struct LayerPages {
    void* keys;
    void* values;
    CacheType type;
    int32_t block_size;
};

// Sequence s has query rows [first_rows[s], first_rows[s + 1]), the last of its key_lengths[s] tokens.
struct AttentionBatch {
    const float* queries;  // [rows, query_stride], the heads of a row side by side from its start
    int64_t query_stride;
    Rows mixed;  // [rows, num_query_heads * head_width]
    int32_t num_sequences;
    const int64_t* first_rows;   // [num_sequences + 1]
    const int64_t* key_lengths;  // [num_sequences]
    const int64_t* block_table;  // [num_sequences, table_stride]
    int64_t table_stride;
    float* partials;  // [rows, num_query_heads, max_stretches, 2 + head_width]
    int32_t max_stretches;
    // A bias for each head and distance, or null: [num_query_heads, bias_width], the middle for a key at the query's own
    // position.
    const float* bias;
    int64_t bias_width;
};

// Some neighbouring query rows of one sequence, all query heads of one key/value head, one stretch of keys.
struct AttentionUnit {
    int32_t sequence;
    int32_t first_row;
    int32_t num_rows;
    int32_t key_value_head;
    int32_t stretch;
};

// The units of a batch. Units of one batch need no order among them; after all, rows are merged.
void plan(const AttentionSpec& spec, const AttentionBatch& batch, std::vector<AttentionUnit>& units);

// The stretches of the longest sequence. With one alone, no row is merged and there are no partials.
int num_stretches(const AttentionBatch& batch);

// Whether a head's columns are whole groups, so that `attend` and `merge` leave finished rows in every representation that
// the batch has room for. Otherwise they leave floats, and who calls them represents the rows.
static inline bool represents_heads(const AttentionSpec& spec) { return spec.head_width % kGroupInputs == 0; }

// Keys [begin, end) of a sequence.
struct KeyRange {
    int64_t begin;
    int64_t end;
};

// What the query at a position sees. Static, because every variant compiles it with instructions of its own.
static inline KeyRange seen_keys(const AttentionSpec& spec, int64_t position, int64_t num_keys) {
    KeyRange seen = {0, num_keys};
    if (spec.window >= 0 && position > spec.window) seen.begin = position - spec.window;
    if (spec.is_causal && position + 1 < seen.end) seen.end = position + 1;
    if (spec.window >= 0 && position + spec.window + 1 < seen.end) seen.end = position + spec.window + 1;
    return seen;
}

static inline bool is_one_stretch(KeyRange seen) {
    return seen.begin / kStretchKeys == (seen.end - 1) / kStretchKeys;
}

}  // namespace janus
