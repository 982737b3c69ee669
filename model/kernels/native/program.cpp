#include "program.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "threads.h"

namespace janus {

namespace {

// Rows that go through a tile together: enough that the tile's bytes are loaded seldom, few enough to share among threads.
constexpr int kStripRows = 48;

// Times that a thread comes for work in a phase: often enough that one who was held up leaves little to wait for, seldom
// enough that neighbouring tiles, and neighbouring rows, which share lines of a cache, mostly go to one thread.
constexpr int kTurns = 4;

int64_t grain_of(int64_t num_units, const Crew& crew) {
    return std::max<int64_t>(1, num_units / (int64_t(kTurns) * crew.size()));
}

bool is_row_wise(const Operation& operation) {
    return operation.kind != Kind::product && operation.kind != Kind::attend;
}

// The units of attention of one kind of layer.
struct Plan {
    AttentionSpec spec;
    std::vector<AttentionUnit> units;
};

// Memory of one buffer, in whatever representations its values have.
struct Buffer {
    Memory<float> floats;
    Memory<int8_t> codes;
    Memory<float> scales;
    Memory<float> sums;
    Memory<int32_t> totals;
    Memory<uint16_t> halves;
};

}  // namespace

class Program {
  public:
    Program(const Kernels& kernels, const Operation* operations, int num_operations, const Value* values, int num_values)
        : kernels_(kernels),
          operations_(operations, operations + num_operations),
          values_(values, values + num_values),
          rows_(size_t(num_values)) {
        int num_buffers = 0;
        for (const Value& value : values_) num_buffers = std::max(num_buffers, value.buffer + 1);
        buffers_ = std::vector<Buffer>(size_t(num_buffers));
        for (const Operation& operation : operations_) {
            if (operation.kind != Kind::attend) continue;
            const auto same = [&](const Plan& other) { return other.spec == operation.attention; };
            const auto found = std::find_if(plans_.begin(), plans_.end(), same);
            plan_of_layer_.resize(std::max(plan_of_layer_.size(), size_t(operation.layer) + 1));
            plan_of_layer_[size_t(operation.layer)] = size_t(found - plans_.begin());
            if (found == plans_.end()) plans_.push_back({operation.attention, {}});
        }
    }

    Status run(Threads& threads, const Batch& batch);

  private:
    void reserve(const Batch& batch, int num_threads);
    Status check(const Batch& batch) const;
    int num_rows(int value, const Batch& batch) const {
        return values_[size_t(value)].rows == RowSpace::tokens ? batch.num_tokens : batch.num_rows;
    }
    void step(Crew& crew, const Batch& batch);
    void row_wise(const Operation& operation, const Batch& batch, int row);
    void multiply(Crew& crew, const Operation& operation, const Batch& batch);
    void score(Crew& crew, const Operation& operation, const Batch& batch);
    void attend(Crew& crew, const Operation& operation, const Batch& batch);
    Product product_of(const Operation& operation) const;
    AttentionBatch attention_of(const Batch& batch) const;
    Likeliest* best_of(int thread, const Batch& batch) {
        return best_.get() + size_t(thread) * size_t(batch.num_rows);
    }

    const Kernels& kernels_;
    const std::vector<Operation> operations_;
    const std::vector<Value> values_;
    std::vector<Rows> rows_;
    std::vector<Buffer> buffers_;
    std::vector<Plan> plans_;
    std::vector<size_t> plan_of_layer_;
    Memory<float> partials_;
    Memory<Likeliest> best_;
    int max_stretches_ = 1;
};

Status Program::run(Threads& threads, const Batch& batch) {
    const Status status = check(batch);
    if (status != kOk) return status;
    reserve(batch, threads.size());
    threads.run([&](Crew& crew) { step(crew, batch); });
    for (int row = batch.num_scores; row < batch.num_rows; ++row) {
        Likeliest best = {-INFINITY, -1};
        for (int thread = 0; thread < threads.size(); ++thread) {
            const Likeliest other = best_of(thread, batch)[row];
            const bool is_earlier = other.score == best.score && other.output < best.output;
            if (other.output >= 0 && (other.score > best.score || is_earlier)) best = other;
        }
        if (best.output < 0) return kNotANumber;
        batch.likeliest[row - batch.num_scores] = best.output;
    }
    return kOk;
}

Status Program::check(const Batch& batch) const {
    for (const Operation& operation : operations_) {
        if (operation.kind == Kind::table) {
            const int64_t* indices = operation.index == Index::token_ids ? batch.token_ids : batch.positions;
            for (int row = 0; row < batch.num_tokens; ++row)
                if (indices[row] < 0 || indices[row] >= operation.matrices->num_outputs) return kOutOfTable;
        }
        if (operation.kind == Kind::attend && operation.layer == 0 && operation.cosines)
            for (int row = 0; row < batch.num_tokens; ++row)
                if (batch.positions[row] < 0 || batch.positions[row] >= operation.num_positions) return kOutOfTable;
    }
    return kOk;
}

// Everything that a step needs, before its threads start.
void Program::reserve(const Batch& batch, int num_threads) {
    for (size_t v = 0; v < values_.size(); ++v) {
        const Value& value = values_[v];
        if (value.buffer < 0) continue;
        Buffer& buffer = buffers_[size_t(value.buffer)];
        const size_t count = size_t(num_rows(int(v), batch));
        const size_t width = size_t(value.width);
        if (value.representations & kFloats) buffer.floats.reserve(count * width);
        if (value.representations & kCodes) {
            buffer.codes.reserve(count * width);
            buffer.scales.reserve(count * (width / kScaleInputs));
            buffer.totals.reserve(count * (width / kScaleInputs));
            buffer.sums.reserve(count * (width / kGroupInputs));
        }
        if (value.representations & kHalves) buffer.halves.reserve(count * (width + 1));
    }
    for (size_t v = 0; v < values_.size(); ++v) {
        const Value& value = values_[v];
        Rows& rows = rows_[v] = Rows{};
        rows.width = value.width;
        if (value.buffer < 0) continue;
        const Buffer& buffer = buffers_[size_t(value.buffer)];
        if (value.representations & kFloats) rows.floats = buffer.floats.get();
        if (value.representations & kCodes) {
            rows.codes = buffer.codes.get();
            rows.scales = buffer.scales.get();
            rows.sums = buffer.sums.get();
            rows.totals = buffer.totals.get();
        }
        if (value.representations & kHalves) rows.halves = buffer.halves.get();
    }
    Likeliest* best = best_.reserve(size_t(num_threads) * size_t(batch.num_rows));
    std::fill(best, best + size_t(num_threads) * size_t(batch.num_rows), Likeliest{-INFINITY, -1});
    max_stretches_ = num_stretches(attention_of(batch));
    size_t partials = 0;
    for (const Operation& operation : operations_) {
        if (operation.kind != Kind::attend || max_stretches_ == 1) continue;
        const AttentionSpec& spec = operation.attention;
        partials = std::max(partials, size_t(batch.num_tokens) * size_t(spec.num_query_heads) * size_t(max_stretches_) *
                                          size_t(2 + spec.head_width));
    }
    partials_.reserve(partials);
    for (Plan& each : plans_) plan(each.spec, attention_of(batch), each.units);
}

AttentionBatch Program::attention_of(const Batch& batch) const {
    AttentionBatch attention = {};
    attention.num_sequences = batch.num_sequences;
    attention.first_rows = batch.first_rows;
    attention.key_lengths = batch.key_lengths;
    attention.block_table = batch.block_table;
    attention.table_stride = batch.table_stride;
    attention.partials = partials_.get();
    attention.max_stretches = max_stretches_;
    return attention;
}

void Program::step(Crew& crew, const Batch& batch) {
    for (size_t i = 0; i < operations_.size();) {
        const Operation& operation = operations_[i];
        if (operation.kind == Kind::attend) {
            attend(crew, operation, batch);
            ++i;
        } else if (operation.kind == Kind::product) {
            operation.output < 0 ? score(crew, operation, batch) : multiply(crew, operation, batch);
            ++i;
        } else {
            // Neighbours that take a row each go through together, as long as they have the same rows.
            size_t end = i + 1;
            while (end < operations_.size() && is_row_wise(operations_[end]) &&
                   values_[size_t(operations_[end].output)].rows == values_[size_t(operation.output)].rows)
                ++end;
            const int count = num_rows(operation.output, batch);
            crew.share(count, grain_of(count, crew), [&](int64_t row) {
                for (size_t j = i; j < end; ++j) row_wise(operations_[j], batch, int(row));
            });
            i = end;
        }
    }
}

void Program::row_wise(const Operation& operation, const Batch& batch, int row) {
    const Rows& output = rows_[size_t(operation.output)];
    float* y = output.floats + int64_t(row) * output.width;
    switch (operation.kind) {
        case Kind::table: {
            const int64_t* indices = operation.index == Index::token_ids ? batch.token_ids : batch.positions;
            kernels_.table_row(*operation.matrices, indices[row], y);
            break;
        }
        case Kind::add: {
            const float* first = rows_[size_t(operation.input)].floats + int64_t(row) * output.width;
            const float* second = rows_[size_t(operation.addend)].floats + int64_t(row) * output.width;
            for (int i = 0; i < output.width; ++i) y[i] = first[i] + second[i];
            break;
        }
        case Kind::norm: {
            const Norm norm = {operation.weight, operation.bias, operation.epsilon, operation.takes_mean != 0};
            kernels_.norm(norm, rows_[size_t(operation.input)], row, output, row);
            return;
        }
        default: {
            const float* x = rows_[size_t(operation.input)].floats + batch.rows[row] * output.width;
            std::copy(x, x + output.width, y);
        }
    }
    kernels_.represent(output, row, 0, output.width);
}

Product Program::product_of(const Operation& operation) const {
    const float* addend = operation.addend < 0 ? nullptr : rows_[size_t(operation.addend)].floats;
    return {operation.matrices, operation.num_matrices,     operation.bias, addend,
            operation.activation, operation.is_gated != 0};
}

void Program::multiply(Crew& crew, const Operation& operation, const Batch& batch) {
    const Product product = product_of(operation);
    const Rows& input = rows_[size_t(operation.input)];
    const Rows& output = rows_[size_t(operation.output)];
    const int count = num_rows(operation.input, batch);
    const int num_strips = (count + kStripRows - 1) / kStripRows;
    const int64_t num_units = int64_t(product.num_tiles()) * num_strips;
    crew.share(num_units, grain_of(num_units, crew), [&](int64_t unit) {
        const int begin = int(unit % num_strips) * kStripRows;
        const int tile = int(unit / num_strips);
        kernels_.product(product, input, tile, begin, std::min(count, begin + kStripRows), output);
    });
}

// The last product: scores for the rows that want all, the likeliest for the others.
void Program::score(Crew& crew, const Operation& operation, const Batch& batch) {
    const Product product = product_of(operation);
    const Rows& input = rows_[size_t(operation.input)];
    Rows scores = {};
    scores.floats = batch.scores;
    for (int s = 0; s < product.num_segments; ++s) scores.width += product.segments[s].num_outputs;
    crew.share(product.num_tiles(), 16, [&](int64_t tile) {
        kernels_.product(product, input, int(tile), 0, batch.num_scores, scores);
        kernels_.likeliest(product, input, int(tile), batch.num_scores, batch.num_rows, best_of(crew.number(), batch));
    });
}

void Program::attend(Crew& crew, const Operation& operation, const Batch& batch) {
    const AttentionSpec& spec = operation.attention;
    const Rows& input = rows_[size_t(operation.input)];
    const Rows& mixed = rows_[size_t(operation.output)];
    const LayerPages& pages = batch.pages[operation.layer];
    const int width = spec.num_query_heads * spec.head_width;
    const int key_width = spec.num_key_value_heads * spec.head_width;
    const Rotation rotation = {operation.cosines, operation.sines, spec.num_query_heads + spec.num_key_value_heads,
                               spec.head_width};
    const std::vector<AttentionUnit>& units = plans_[plan_of_layer_[size_t(operation.layer)]].units;
    AttentionBatch attention = attention_of(batch);
    attention.queries = input.floats;
    attention.query_stride = input.width;
    attention.mixed = mixed;
    crew.share(batch.num_tokens, grain_of(batch.num_tokens, crew), [&](int64_t row) {
        float* x = input.floats + row * input.width;
        if (rotation.cosines) kernels_.rotate(rotation, batch.positions[row], x);
        kernels_.store(spec, pages, batch.slots[row], x + width, x + width + key_width);
    });
    crew.share(int64_t(units.size()), 1, [&](int64_t unit) {
        kernels_.attend(spec, pages, units[size_t(unit)], attention);
    });
    if (max_stretches_ > 1)
        crew.share(int64_t(batch.num_tokens) * spec.num_query_heads, 1, [&](int64_t unit) {
            kernels_.merge(spec, attention, int(unit / spec.num_query_heads), int(unit % spec.num_query_heads));
        });
    if ((mixed.codes || mixed.halves) && !represents_heads(spec))
        crew.share(batch.num_tokens, grain_of(batch.num_tokens, crew), [&](int64_t row) { kernels_.represent(mixed, int(row), 0, mixed.width); });
}

}  // namespace janus

extern "C" {

#define JANUS_API __attribute__((visibility("default")))

// The structures stay the caller's, and what they point to must live as long as the program.
JANUS_API void* janus_program_new(const char* kernel, const janus::Operation* operations, int32_t num_operations,
                                  const janus::Value* values, int32_t num_values) {
    const janus::Kernels* kernels = janus::kernels_named(kernel);
    if (!kernels) return nullptr;
    try {
        return new janus::Program(*kernels, operations, num_operations, values, num_values);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

JANUS_API void janus_program_free(void* program) { delete static_cast<janus::Program*>(program); }

JANUS_API int32_t janus_program_run(void* program, void* threads, const janus::Batch* batch) {
    try {
        return static_cast<janus::Program*>(program)->run(*static_cast<janus::Threads*>(threads), *batch);
    } catch (const std::bad_alloc&) {
        return janus::kNoMemory;
    }
}

}  // extern "C"
