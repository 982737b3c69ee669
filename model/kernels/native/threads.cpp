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

// Turns of a pause before a waiting thread offers its core to others: some microseconds, as long as threads that began
// together need to end together.
constexpr int kPauses = 200;

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A core that the process may not use is not insisted on.
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

Threads::Threads(int num_threads, const int32_t* cores, std::chrono::microseconds awake)
    : size_(num_threads), awake_(awake) {
    workers_.reserve(size_t(size_));
    try {
        for (int number = 1; number < size_; ++number) {
            const int core = cores ? cores[number] : -1;
            workers_.emplace_back([this, number, core] { work(number, core); });
        }
    } catch (...) {
        close();
        throw;
    }
}

Threads::~Threads() { close(); }

void Threads::close() {
    is_closed_ = true;
    region_.fetch_add(1);
    region_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Threads::run_erased(Body body, void* argument) noexcept {
    const std::lock_guard<std::mutex> alone(is_running_);
    body_ = body;
    argument_ = argument;
    region_.fetch_add(1);
    if (region_sleepers_.load()) region_.notify_all();
    Crew crew(*this, 0);
    body(argument, crew);
    meet();
}

// A region ends with a meeting, so no thread can miss one: `seen` counts them.
void Threads::work(int number, int core) noexcept {
    if (core >= 0) stay_on(core);
    for (uint32_t seen = 0;; ++seen) {
        wait_for_change(region_, seen, region_sleepers_);
        if (is_closed_) return;
        Crew crew(*this, number);
        body_(argument_, crew);
        meet();
    }
}

// The last to arrive makes the counters ready for what comes after the meeting; nobody else looks at them before it.
void Threads::meet() {
    const uint32_t meeting = meetings_.load();
    if (arrived_.fetch_add(1) + 1 < uint32_t(size_)) {
        wait_for_change(meetings_, meeting, meeting_sleepers_);
        return;
    }
    arrived_.store(0, std::memory_order_relaxed);
    next_.store(0, std::memory_order_relaxed);
    meetings_.fetch_add(1);
    if (meeting_sleepers_.load()) meetings_.notify_all();
}

// Who changes a word looks for sleepers afterwards, and a sleeper counts itself before it looks at the word a last time:
// in the one order of all these operations one of the two sees the other.
void Threads::wait_for_change(std::atomic<uint32_t>& word, uint32_t before, std::atomic<uint32_t>& sleepers) {
    if (awake_.count() > 0) {
        for (int turn = 0; turn < kPauses; ++turn) {
            if (word.load(std::memory_order_acquire) != before) return;
            pause();
        }
        const auto until = std::chrono::steady_clock::now() + awake_;
        do {
            if (word.load(std::memory_order_acquire) != before) return;
            std::this_thread::yield();
        } while (std::chrono::steady_clock::now() < until);
    }
    sleepers.fetch_add(1);
    while (word.load() == before) word.wait(before);
    sleepers.fetch_sub(1);
}

}  // namespace janus

extern "C" {

// `cores` has num_threads numbers, or is null where the system places the threads. Null where it has no more of them.
__attribute__((visibility("default"))) janus::Threads* janus_threads_new(int32_t num_threads, const int32_t* cores,
                                                                        int32_t awake_microseconds) {
    try {
        return new janus::Threads(num_threads, cores, std::chrono::microseconds(awake_microseconds));
    } catch (const std::exception&) {
        return nullptr;
    }
}

__attribute__((visibility("default"))) void janus_threads_free(janus::Threads* threads) { delete threads; }

}  // extern "C"
