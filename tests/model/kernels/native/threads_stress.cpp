// Regions of random shares on the threads of the library: every unit runs once, and what was written before a meeting is
// read after it. Plain memory alone is shared, so that a thread sanitizer sees every order that isn't kept. At the end the
// threads have nothing to do, and must do nothing.
//
//   threads_stress THREADS REGIONS AWAKE_MICROSECONDS SEED
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "threads.h"

namespace {

using Random = std::mt19937;

int below(Random& random, int limit) { return int(random() % uint32_t(limit)); }

struct Share {
    int num_units;
    int grain;
    bool meets_again;
};

std::vector<Share> random_shares(Random& random) {
    std::vector<Share> shares(size_t(below(random, 12)));
    for (Share& share : shares) share = {below(random, 3) ? below(random, 40) : 0, 1 + below(random, 5), !below(random, 4)};
    return shares;
}

void fail(const char* what) {
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

// A value that a unit can only have got in this region and share.
int value_of(int region, size_t share, int unit) { return (region * 16 + int(share)) * 64 + unit; }

void dawdle(Random& random) {
    switch (below(random, 64)) {
        case 0: std::this_thread::sleep_for(std::chrono::microseconds(below(random, 300))); break;
        case 1:
        case 2: std::this_thread::yield(); break;
    }
}

void region(janus::Threads& threads, int number, Random& random) {
    const std::vector<Share> shares = random_shares(random);
    const uint32_t seed = random();
    std::vector<std::vector<int>> values;
    std::vector<std::vector<int>> counts;
    for (const Share& share : shares) {
        values.emplace_back(size_t(share.num_units));
        counts.emplace_back(size_t(share.num_units));
    }
    threads.run([&](janus::Crew& crew) {
        Random own(seed + uint32_t(crew.number()));
        for (size_t s = 0; s < shares.size(); ++s) {
            crew.share(shares[s].num_units, shares[s].grain, [&](int64_t unit) {
                dawdle(own);
                ++counts[s][size_t(unit)];
                values[s][size_t(unit)] = value_of(number, s, int(unit));
                if (s > 0)
                    for (size_t i = 0; i < values[s - 1].size(); ++i)
                        if (values[s - 1][i] != value_of(number, s - 1, int(i))) fail("a meeting was missed");
            });
            if (shares[s].meets_again) crew.meet();
        }
    });
    for (size_t s = 0; s < shares.size(); ++s)
        for (int count : counts[s])
            if (count != 1) fail("a unit did not run once");
}

}  // namespace

int main(int, char** arguments) {
    const int num_threads = std::atoi(arguments[1]);
    const int num_regions = std::atoi(arguments[2]);
    const std::chrono::microseconds awake(std::atoi(arguments[3]));
    Random random(uint32_t(std::atoi(arguments[4])));
    std::unique_ptr<janus::Threads> threads;
    for (int number = 0; number < num_regions; ++number) {
        // Some sets end without a region, some right after one.
        while (!threads || !below(random, 50)) threads = std::make_unique<janus::Threads>(num_threads, nullptr, awake);
        dawdle(random);
        region(*threads, number, random);
    }
    // Callers that come at the same time take turns.
    const uint32_t seed = random();
    const auto call = [&](uint32_t caller) {
        Random own(seed + caller);
        for (int number = 0; number < num_regions / 10; ++number) region(*threads, number, own);
    };
    std::thread other(call, 1);
    call(2);
    other.join();
    std::this_thread::sleep_for(10 * awake);
    const std::clock_t before = std::clock();
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    if (std::clock() - before > CLOCKS_PER_SEC / 25) fail("idle threads used the processor");
}
