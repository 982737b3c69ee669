#include "attention.h"

#include <algorithm>

namespace janus {

namespace {

// Rows times heads of a unit: enough that a stretch of keys is seldom loaded, few enough to share a prompt among threads.
constexpr int kUnitRows = 48;

}  // namespace

void plan(const AttentionSpec& spec, const AttentionBatch& batch, std::vector<AttentionUnit>& units) {
    units.clear();
    const int num_heads = spec.num_key_value_heads;
    const int64_t most_rows = std::max(1, kUnitRows / (spec.num_query_heads / num_heads));
    for (int s = 0; s < batch.num_sequences; ++s) {
        const int64_t end = batch.first_rows[s + 1];
        const int64_t num_keys = batch.key_lengths[s];
        for (int64_t row = batch.first_rows[s]; row < end; row += most_rows) {
            const int64_t num_rows = std::min(most_rows, end - row);
            const int64_t position = num_keys - (end - row);
            const KeyRange first = seen_keys(spec, position, num_keys);
            const KeyRange last = seen_keys(spec, position + num_rows - 1, num_keys);
            for (int64_t stretch = first.begin / kStretchKeys; stretch * kStretchKeys < last.end; ++stretch)
                for (int head = 0; head < num_heads; ++head)
                    units.push_back({s, int32_t(row), int32_t(num_rows), head, int32_t(stretch)});
        }
    }
}

int num_stretches(const AttentionBatch& batch) {
    int64_t most = 1;
    for (int s = 0; s < batch.num_sequences; ++s)
        most = std::max(most, (batch.key_lengths[s] + kStretchKeys - 1) / kStretchKeys);
    return int(most);
}

}  // namespace janus
