// A token drawn from a row of scores: the same draw as model/sampling.py, without sorting what need not be sorted.
#pragma once

#include <cstdint>

namespace janus {

// The scores are left as they are. Tokens are counted from 0 to `vocabulary`. Read as it lies in memory:
// model/kernels/native/sampler.py has its mirror.
struct SampledRow {
    const float* scores;
    const uint32_t* allowed;  // token t by bit t % 32 of word t / 32; null: all of them
    const int32_t* tokens;    // of the sequence, for penalties
    const int32_t* biased;
    const float* bias;
    const int32_t* banned;
    int32_t* top;  // the likeliest by the model's own scores, with their log probabilities
    double* top_logprobs;
    double temperature;
    double top_p;
    double min_p;
    double chance;
    double presence_penalty;
    double frequency_penalty;
    float repetition_penalty;
    int32_t top_k;
    int32_t num_prompt;  // of `tokens`
    int32_t num_tokens;
    int32_t num_biased;
    int32_t num_banned;
    int32_t num_top;  // below 0: no log probabilities at all
    int32_t given;    // a token to be told about in the place of one to be drawn, or -1
};

enum class DrawStatus : int32_t { drawn = 0, no_numbers = 1, none_allowed = 2 };

struct Drawn {
    double logprob;
    int32_t token;
    DrawStatus status;
};

// Scores are looked at in blocks, by the largest of each.
constexpr int kScoreBlock = 64;

// What one thread works in.
struct SamplerRoom {
    float* adjusted;      // [vocabulary]
    float* largest;       // [blocks]
    int32_t* counts;      // [vocabulary], all 0 between two rows
    uint64_t* candidates;  // [vocabulary]
    uint64_t* spare;       // [vocabulary]
    double* cumulative;    // [vocabulary and 7 more]
};

}  // namespace janus
