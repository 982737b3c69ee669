// The threads that run a step together.
//
// One region a step: every thread runs the same function, takes units of work from a shared counter and meets the others
// at a barrier. A thread that waits stays awake for a short while, of which it gives up its core for all but the first
// microseconds, and then sleeps: two services on two cores don't starve one another, and an idle one costs nothing.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace janus {

class Threads;

// The threads of a region as one of them sees them.
class Crew {
  public:
    Crew(Threads& threads, int number) : threads_(threads), number_(number) {}

    int number() const { return number_; }
    inline int size() const;

    // f(unit) for every unit once, on whichever thread is free; then all meet. A thread takes a stretch of neighbours at a
    // time, half of its share of what is left, so that stretches are long and yet all end together; `grain` units at least.
    template <typename F>
    void share(int64_t num_units, int64_t grain, F&& f);

    // Returns when all have come here; what each did before, all see.
    inline void meet();

  private:
    Threads& threads_;
    int number_;
};

class Threads {
  public:
    // `num_threads` counts the caller. Thread i stays on cores[i], where there are cores; the caller goes where it likes.
    // Throws: std::system_error where the system has no more threads, std::bad_alloc.
    Threads(int num_threads, const int32_t* cores, std::chrono::microseconds awake);
    ~Threads();
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;

    int size() const { return size_; }

    // body(crew) on every thread; returns when all are through. A second caller waits for the first. The body must not
    // throw, nor call this.
    template <typename F>
    void run(F&& body) {
        using Function = std::remove_reference_t<F>;
        run_erased([](void* f, Crew& crew) { (*static_cast<Function*>(f))(crew); }, &body);
    }

  private:
    friend class Crew;
    using Body = void (*)(void*, Crew&);

    void run_erased(Body body, void* argument) noexcept;
    void work(int number, int core) noexcept;
    void wait_for_change(std::atomic<uint32_t>& word, uint32_t before, std::atomic<uint32_t>& sleepers);
    void meet();
    void close();

    const int size_;
    const std::chrono::nanoseconds awake_;
    std::mutex is_running_;
    std::vector<std::thread> workers_;
    Body body_ = nullptr;
    void* argument_ = nullptr;
    bool is_closed_ = false;
    // What many threads write lies in lines of its own.
    alignas(64) std::atomic<uint32_t> region_{0};
    std::atomic<uint32_t> region_sleepers_{0};
    alignas(64) std::atomic<uint32_t> arrived_{0};
    alignas(64) std::atomic<uint32_t> meetings_{0};
    std::atomic<uint32_t> meeting_sleepers_{0};
    alignas(64) std::atomic<int64_t> next_{0};
};

inline int Crew::size() const { return threads_.size(); }

inline void Crew::meet() { threads_.meet(); }

template <typename F>
void Crew::share(int64_t num_units, int64_t grain, F&& f) {
    std::atomic<int64_t>& next = threads_.next_;
    int64_t begin = next.load(std::memory_order_relaxed);
    while (begin < num_units) {
        const int64_t half = (num_units - begin) / (2 * size());
        const int64_t stretch = half > grain ? half : grain;
        const int64_t end = begin + stretch < num_units ? begin + stretch : num_units;
        if (!next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
        for (int64_t unit = begin; unit < end; ++unit) f(unit);
        begin = next.load(std::memory_order_relaxed);
    }
    meet();
}

}  // namespace janus
