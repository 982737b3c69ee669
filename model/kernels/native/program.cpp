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

// Neighbouring rows share lines of a cache, so a thread takes some at a time where there are many.
constexpr int kRowGrain = 8;

// So few rows are normalised by every thread for itself: that takes less than to meet.
constexpr int kFewRows = 2;

int row_grain_of(int num_rows) { return num_rows < kRowGrain * kRowGrain ? 1 : kRowGrain; }

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
        std::vector<int> num_reads(values_.size());
        for (const Operation& operation : operations_)
            for (const int value : {operation.input, operation.addend})
                if (value >= 0) ++num_reads[size_t(value)];
        for (size_t i = 0; i < operations_.size(); ++i) {
            const Operation& operation = operations_[i];
            const bool has_product = i + 1 < operations_.size() && operations_[i + 1].kind == Kind::product &&
                                     operations_[i + 1].output >= 0 && operations_[i + 1].input == operation.output;
            is_for_next_alone_.push_back(operation.kind == Kind::norm && has_product &&
                                         num_reads[size_t(operation.output)] == 1);
        }
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
    void make_room(int value, int num_rows, Buffer& buffer) const;
    Rows rows_of(int value, const Buffer& buffer) const;
    Status check(const Batch& batch) const;
    int num_rows(int value, const Batch& batch) const {
        return values_[size_t(value)].rows == RowSpace::tokens ? batch.num_tokens : batch.num_rows;
    }
    void step(Crew& crew, const Batch& batch);
    void row_wise(const Operation& operation, const Batch& batch, int row);
    void multiply(Crew& crew, const Operation& operation, const Rows& input, const Batch& batch);
    Rows normalise_alone(int thread, const Operation& norm, const Batch& batch);
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
    std::vector<Buffer> own_;  // a thread each
    // Whether an operation is a norm that the product after it reads, and nothing else does.
    std::vector<bool> is_for_next_alone_;
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

// Memory for so many rows of a value.
void Program::make_room(int value, int num_rows, Buffer& buffer) const {
    const int representations = values_[size_t(value)].representations;
    const size_t count = size_t(num_rows);
    const size_t width = size_t(values_[size_t(value)].width);
    if (representations & kFloats) buffer.floats.reserve(count * width);
    if (representations & kCodes) {
        buffer.codes.reserve(count * width);
        buffer.scales.reserve(count * (width / kScaleInputs));
        buffer.totals.reserve(count * (width / kScaleInputs));
        buffer.sums.reserve(count * (width / kGroupInputs));
    }
    if (representations & kHalves) buffer.halves.reserve(count * (width + 1));
}

Rows Program::rows_of(int value, const Buffer& buffer) const {
    const int representations = values_[size_t(value)].representations;
    Rows rows = {};
    rows.width = values_[size_t(value)].width;
    if (representations & kFloats) rows.floats = buffer.floats.get();
    if (representations & kCodes) {
        rows.codes = buffer.codes.get();
        rows.scales = buffer.scales.get();
        rows.totals = buffer.totals.get();
        rows.sums = buffer.sums.get();
    }
    if (representations & kHalves) rows.halves = buffer.halves.get();
    return rows;
}

// Everything that a step needs, before its threads start.
void Program::reserve(const Batch& batch, int num_threads) {
    for (size_t v = 0; v < values_.size(); ++v) {
        rows_[v] = Rows{};
        rows_[v].width = values_[v].width;
        if (values_[v].buffer >= 0) make_room(int(v), num_rows(int(v), batch), buffers_[size_t(values_[v].buffer)]);
    }
    for (size_t v = 0; v < values_.size(); ++v)
        if (values_[v].buffer >= 0) rows_[v] = rows_of(int(v), buffers_[size_t(values_[v].buffer)]);
    while (own_.size() < size_t(num_threads)) own_.emplace_back();
    for (size_t i = 0; i < operations_.size(); ++i)
        if (is_for_next_alone_[i])
            for (Buffer& own : own_) make_room(operations_[i].output, kFewRows, own);
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
            if (operation.output < 0)
                score(crew, operation, batch);
            else
                multiply(crew, operation, rows_[size_t(operation.input)], batch);
            ++i;
        } else if (is_for_next_alone_[i] && num_rows(operation.output, batch) <= kFewRows) {
            multiply(crew, operations_[i + 1], normalise_alone(crew.number(), operation, batch), batch);
            i += 2;
        } else {
            // Neighbours that take a row each go through together, as long as they have the same rows.
            size_t end = i + 1;
            const int count = num_rows(operation.output, batch);
            while (end < operations_.size() && is_row_wise(operations_[end]) &&
                   !(is_for_next_alone_[end] && count <= kFewRows) &&
                   values_[size_t(operations_[end].output)].rows == values_[size_t(operation.output)].rows)
                ++end;
            crew.share(count, row_grain_of(count), [&](int64_t row) {
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

// The few rows of a norm in this thread's own memory.
Rows Program::normalise_alone(int thread, const Operation& operation, const Batch& batch) {
    const Norm norm = {operation.weight, operation.bias, operation.epsilon, operation.takes_mean != 0};
    const Rows& input = rows_[size_t(operation.input)];
    const Rows rows = rows_of(operation.output, own_[size_t(thread)]);
    for (int row = 0; row < num_rows(operation.output, batch); ++row) kernels_.norm(norm, input, row, rows, row);
    return rows;
}

void Program::multiply(Crew& crew, const Operation& operation, const Rows& input, const Batch& batch) {
    const Product product = product_of(operation);
    const Rows& output = rows_[size_t(operation.output)];
    const int count = num_rows(operation.input, batch);
    const int num_strips = (count + kStripRows - 1) / kStripRows;
    crew.share(int64_t(product.num_tiles()) * num_strips, 1, [&](int64_t unit) {
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
    crew.share(product.num_tiles(), 4, [&](int64_t tile) {
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
    const std::vector<AttentionUnit>& units = plans_[plan_of_layer_[size_t(operation.layer)]].units;
    AttentionBatch attention = attention_of(batch);
    attention.queries = input.floats;
    attention.query_stride = input.width;
    attention.mixed = mixed;
    // Turns and stores key/value heads [begin, end) of a row, and turns the query heads that look at them.
    const auto enter = [&](int64_t row, int begin, int end) {
        float* x = input.floats + row * input.width;
        float* key = x + width + begin * spec.head_width;
        if (operation.cosines) {
            const int group = spec.num_query_heads / spec.num_key_value_heads;
            Rotation rotation = {operation.cosines, operation.sines, (end - begin) * group, spec.head_width};
            kernels_.rotate(rotation, batch.positions[row], x + begin * group * spec.head_width);
            rotation.num_heads = end - begin;
            kernels_.rotate(rotation, batch.positions[row], key);
        }
        kernels_.store(spec, pages, batch.slots[row], begin, end, key, key + key_width);
    };
    // Single tokens that look at one stretch each have one unit a head, which can do all of it.
    const bool is_at_once = batch.num_tokens == batch.num_sequences && max_stretches_ == 1;
    if (!is_at_once)
        crew.share(batch.num_tokens, row_grain_of(batch.num_tokens),
                   [&](int64_t row) { enter(row, 0, spec.num_key_value_heads); });
    crew.share(int64_t(units.size()), 1, [&](int64_t number) {
        const AttentionUnit& unit = units[size_t(number)];
        if (is_at_once) enter(unit.first_row, unit.key_value_head, unit.key_value_head + 1);
        kernels_.attend(spec, pages, unit, attention);
    });
    if (max_stretches_ > 1)
        crew.share(int64_t(batch.num_tokens) * spec.num_query_heads, 1, [&](int64_t unit) {
            kernels_.merge(spec, attention, int(unit / spec.num_query_heads), int(unit % spec.num_query_heads));
        });
    if ((mixed.codes || mixed.halves) && !represents_heads(spec))
        crew.share(batch.num_tokens, row_grain_of(batch.num_tokens),
                   [&](int64_t row) { kernels_.represent(mixed, int(row), 0, mixed.width); });
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
