// Rows of scores to tokens, each row on one of the threads.

#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "program.h"
#include "sampling.h"
#include "threads.h"

namespace janus {
namespace {

class Room {
  public:
    explicit Room(int vocabulary) {
        const size_t count = size_t(vocabulary);
        view_.adjusted = adjusted_.reserve(count);
        view_.largest = largest_.reserve(count / kScoreBlock + 1);
        view_.counts = counts_.reserve(count);
        view_.candidates = candidates_.reserve(count);
        view_.spare = spare_.reserve(count);
        view_.cumulative = cumulative_.reserve(count + 7);
        std::memset(view_.counts, 0, count * sizeof *view_.counts);
    }

    const SamplerRoom& view() const { return view_; }

  private:
    SamplerRoom view_ = {};
    Memory<float> adjusted_, largest_;
    Memory<int32_t> counts_;
    Memory<uint64_t> candidates_, spare_;
    Memory<double> cumulative_;
};

struct Sampler {
    const Kernels* kernels;
    int vocabulary;
    std::vector<std::unique_ptr<Room>> rooms;  // one for each thread that ever ran

    const SamplerRoom& room(int thread) { return rooms[size_t(thread)]->view(); }

    void make_rooms(int num_threads) {
        while (rooms.size() < size_t(num_threads)) rooms.push_back(std::make_unique<Room>(vocabulary));
    }
};

}  // namespace
}  // namespace janus

extern "C" {

// Null for an unknown variant, and for want of memory.
__attribute__((visibility("default"))) void* janus_sampler_new(const char* kernel, int32_t vocabulary) {
    using namespace janus;
    const Kernels* kernels = kernels_named(kernel);
    if (!kernels) return nullptr;
    try {
        auto sampler = std::make_unique<Sampler>(Sampler{kernels, vocabulary, {}});
        sampler->make_rooms(1);
        return sampler.release();
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

__attribute__((visibility("default"))) void janus_sampler_free(void* sampler) {
    delete static_cast<janus::Sampler*>(sampler);
}

// drawn [num_rows]. Every row is drawn, whatever becomes of the others.
__attribute__((visibility("default"))) int32_t janus_sampler_draw(void* sampler, void* threads,
                                                                  const janus::SampledRow* rows, int32_t num_rows,
                                                                  janus::Drawn* drawn) {
    using namespace janus;
    Sampler& self = *static_cast<Sampler*>(sampler);
    const auto draw = [&](int64_t row, int thread) {
        drawn[row] = self.kernels->sample(rows[row], self.vocabulary, self.room(thread));
    };
    // For one row the others are not woken.
    if (num_rows == 1) {
        draw(0, 0);
        return kOk;
    }
    Threads& all = *static_cast<Threads*>(threads);
    try {
        self.make_rooms(all.size());
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
    all.run([&](Crew& crew) { crew.share(num_rows, 1, [&](int64_t row) { draw(row, crew.number()); }); });
    return kOk;
}

}  // extern "C"
