// A whole step in one call: a list of operations over packed rows, prompts, chunks and single tokens alike.
//
// The list comes from Python (model/program), which has traced it from the model's own text and fused it; this side knows no
// family. These structures are read as they lie in memory: model/program/native.py has their mirror.
#pragma once

#include <cstdint>

#include "attention.h"
#include "operations.h"
#include "weights.h"

namespace janus {

enum class Kind : int32_t { table = 0, add = 1, norm = 2, product = 3, attend = 4, take_rows = 5 };

// Which rows a value has: one for each token, or one for each row that is scored.
enum class RowSpace : int32_t { tokens = 0, scored = 1 };

// What a table's rows are looked up by.
enum class Index : int32_t { token_ids = 0, positions = 1 };

// How a value's rows are there; several may be asked for.
enum Representation : int32_t { kFloats = 1, kCodes = 2, kHalves = 4 };

// Values with the same buffer are never alive together.
struct Value {
    RowSpace rows;
    int32_t width;
    int32_t representations;
    int32_t buffer;
};

struct Operation {
    Kind kind;
    int32_t input;   // a value
    int32_t addend;  // another value, or -1
    int32_t output;  // a value; -1 for the scores that leave the program
    Index index;
    Activation activation;
    int32_t is_gated;
    int32_t takes_mean;
    float epsilon;
    int32_t num_matrices;
    const Matrix* matrices;
    const float* weight;
    const float* bias;
    const float* cosines;  // with sines, or null where nothing turns: [num_positions, head_width / 2]
    const float* sines;
    int64_t num_positions;
    AttentionSpec attention;
    int32_t layer;
};

struct Batch {
    int32_t num_tokens;
    int32_t num_sequences;
    int32_t num_rows;    // that are scored, by `rows`
    int32_t num_scores;  // the first so many of them give all scores, the others their likeliest output
    const int64_t* token_ids;
    const int64_t* positions;
    const int64_t* slots;
    const int64_t* first_rows;   // [num_sequences + 1]
    const int64_t* key_lengths;  // [num_sequences]
    const int64_t* block_table;  // [num_sequences, table_stride]
    int64_t table_stride;
    const int64_t* rows;     // [num_rows]
    const LayerPages* pages;  // a layer each
    float* scores;            // [num_scores, outputs of the last product]
    int32_t* likeliest;       // [num_rows - num_scores]
};

enum Status : int32_t {
    kOk = 0,
    kNoMemory = -1,
    kOutOfTable = -2,     // a token or a position beyond its table
    kNotANumber = -3,     // a row without a likeliest output
    kUnknownKernel = -4,
    kWrongProgram = -5,
};

}  // namespace janus
