// The threads that run a step together.
//
// One region a step: every thread runs the same function, takes units of work from a shared counter and meets the others
// at a barrier. A thread that waits spins a little, then yields, then sleeps, so that two services on two cores don't
// starve one another, and an idle one costs nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace janus {

class Threads;

// The threads of a region as one of them sees them.
class Crew {
  public:
    inline Crew(Threads& threads, int number);

    int number() const { return number_; }
    int size() const;

    // f(unit) for every unit once, on whichever thread is free; `grain` units are taken at a time. Then all meet.
    template <typename F>
    void share(int64_t num_units, int64_t grain, F&& f);

    void meet();

  private:
    Threads& threads_;
    int number_;
    uint32_t phase_;
};

class Threads {
  public:
    // `num_threads` counts the caller. `first_core` below 0 leaves the cores to the system. `spins` is how many turns of a
    // pause a thread waits awake before it yields, and as many yields again before it sleeps.
    Threads(int num_threads, int first_core, int spins);
    ~Threads();
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;

    int size() const { return size_; }

    // body(crew) on every thread; returns when all are through. Only one caller at a time.
    template <typename F>
    void run(F&& body) {
        using Function = std::remove_reference_t<F>;
        run_erased([](void* f, Crew& crew) { (*static_cast<Function*>(f))(crew); }, &body);
    }

  private:
    friend class Crew;
    using Body = void (*)(void*, Crew&);

    void run_erased(Body body, void* argument);
    void work(int number, int core);
    void wait_for_change(std::atomic<uint32_t>& word, uint32_t before, std::atomic<uint32_t>& sleepers);
    void meet();

    const int size_;
    const int spins_;
    std::vector<std::thread> workers_;
    Body body_ = nullptr;
    void* argument_ = nullptr;
    alignas(64) std::atomic<uint32_t> region_{0};
    std::atomic<uint32_t> region_sleepers_{0};
    std::atomic<bool> is_closed_{false};
    alignas(64) std::atomic<uint32_t> arrived_{0};
    alignas(64) std::atomic<uint32_t> meetings_{0};
    std::atomic<uint32_t> meeting_sleepers_{0};
    alignas(64) std::atomic<int64_t> next_[2];
};

// All start from the number of meetings so far, which can't change before they have met.
inline Crew::Crew(Threads& threads, int number)
    : threads_(threads), number_(number), phase_(threads.meetings_.load()) {}

inline int Crew::size() const { return threads_.size(); }

inline void Crew::meet() {
    ++phase_;
    threads_.meet();
}

template <typename F>
void Crew::share(int64_t num_units, int64_t grain, F&& f) {
    std::atomic<int64_t>& next = threads_.next_[phase_ & 1];
    for (;;) {
        const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= num_units) break;
        const int64_t end = begin + grain < num_units ? begin + grain : num_units;
        for (int64_t unit = begin; unit < end; ++unit) f(unit);
    }
    meet();
}

}  // namespace janus
