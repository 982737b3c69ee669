#include "threads.h"

#include <exception>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace janus {

namespace {

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

void stay_on(int core) {
#if defined(__linux__)
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(core, &cores);
    pthread_setaffinity_np(pthread_self(), sizeof cores, &cores);
#else
    (void)core;
#endif
}

}  // namespace

Threads::Threads(int num_threads, int first_core, int spins) : size_(num_threads), spins_(spins) {
    next_[0] = next_[1] = 0;
    for (int number = 1; number < size_; ++number)
        workers_.emplace_back([this, number, first_core] { work(number, first_core < 0 ? -1 : first_core + number); });
}

Threads::~Threads() {
    is_closed_ = true;
    region_.fetch_add(1);
    region_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Threads::run_erased(Body body, void* argument) {
    body_ = body;
    argument_ = argument;
    region_.fetch_add(1);
    if (region_sleepers_.load()) region_.notify_all();
    Crew crew(*this, 0);
    body(argument, crew);
    crew.meet();
}

void Threads::work(int number, int core) {
    if (core >= 0) stay_on(core);
    for (uint32_t seen = 0;; ++seen) {
        wait_for_change(region_, seen, region_sleepers_);
        if (is_closed_) return;
        Crew crew(*this, number);
        body_(argument_, crew);
        crew.meet();
    }
}

// The last to arrive clears the counter of the phase that ends: nobody looks at it before the phase after the next.
void Threads::meet() {
    const uint32_t meeting = meetings_.load();
    if (arrived_.fetch_add(1) + 1 < uint32_t(size_)) {
        wait_for_change(meetings_, meeting, meeting_sleepers_);
        return;
    }
    arrived_ = 0;
    next_[meeting & 1] = 0;
    meetings_.fetch_add(1);
    if (meeting_sleepers_.load()) meetings_.notify_all();
}

void Threads::wait_for_change(std::atomic<uint32_t>& word, uint32_t before, std::atomic<uint32_t>& sleepers) {
    for (int turn = 0; turn < spins_; ++turn) {
        if (word.load(std::memory_order_acquire) != before) return;
        pause();
    }
    for (int turn = 0; turn < spins_; ++turn) {
        if (word.load(std::memory_order_acquire) != before) return;
        std::this_thread::yield();
    }
    sleepers.fetch_add(1);
    while (word.load() == before) word.wait(before);
    sleepers.fetch_sub(1);
}

}  // namespace janus

extern "C" {

// Null where the system has no more threads or no memory.
__attribute__((visibility("default"))) janus::Threads* janus_threads_new(int32_t num_threads, int32_t first_core,
                                                                        int32_t spins) {
    try {
        return new janus::Threads(num_threads, first_core, spins);
    } catch (const std::exception&) {
        return nullptr;
    }
}

__attribute__((visibility("default"))) void janus_threads_free(janus::Threads* threads) { delete threads; }

}  // extern "C"
