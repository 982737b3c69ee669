// Attention by itself, for models that run through torch: the same units as in a program's step.
#include <new>
#include <vector>

#include "attention.h"
#include "kernels.h"
#include "memory.h"
#include "threads.h"

namespace janus {

namespace {

enum Status : int32_t { kOk = 0, kNoMemory = -1 };

// Tokens that a thread writes at a time: as many as share the lines of their keys.
constexpr int kStoredTokens = 16;

}  // namespace

}  // namespace janus

extern "C" {

#define JANUS_API __attribute__((visibility("default")))

// Keys and values of `num_tokens` tokens into their slots; a token's heads lie side by side.
JANUS_API int32_t janus_attention_write(const janus::Kernels* kernels, janus::Threads* threads,
                                        const janus::AttentionSpec* spec, const janus::LayerPages* pages,
                                        const float* keys, int64_t key_stride, const float* values,
                                        int64_t value_stride, const int64_t* slots, int64_t num_tokens) {
    threads->run([&](janus::Crew& crew) {
        crew.share(num_tokens, janus::kStoredTokens, [&](int64_t t) {
            kernels->store(*spec, *pages, slots[t], 0, spec->num_key_value_heads, keys + t * key_stride,
                           values + t * value_stride);
        });
    });
    return janus::kOk;
}

// Fills `mixed`; partials and stretches of the batch are this call's own.
JANUS_API int32_t janus_attention_run(const janus::Kernels* kernels, janus::Threads* threads,
                                      const janus::AttentionSpec* spec, const janus::LayerPages* pages,
                                      const janus::AttentionBatch* given) {
    try {
        janus::AttentionBatch batch = *given;
        const int num_heads = spec->num_query_heads;
        const int64_t num_rows = batch.first_rows[batch.num_sequences];
        batch.max_stretches = janus::num_stretches(batch);
        janus::Memory<float> partials;
        if (batch.max_stretches > 1)
            batch.partials = partials.reserve(size_t(num_rows) * size_t(num_heads) * size_t(batch.max_stretches) *
                                              size_t(2 + spec->head_width));
        std::vector<janus::AttentionUnit> units;
        janus::plan(*spec, batch, units);
        threads->run([&](janus::Crew& crew) {
            crew.share(int64_t(units.size()), 1,
                       [&](int64_t unit) { kernels->attend(*spec, *pages, units[size_t(unit)], batch); });
            if (batch.max_stretches == 1) return;
            crew.share(num_rows * num_heads, num_heads, [&](int64_t unit) {
                kernels->merge(*spec, batch, int(unit / num_heads), int(unit % num_heads));
            });
        });
        return janus::kOk;
    } catch (const std::bad_alloc&) {
        return janus::kNoMemory;
    }
}

}  // extern "C"
