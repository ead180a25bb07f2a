// SPDX-License-Identifier: Apache-2.0
/// What a kick costs: from the write of a doorbell to the wake-up of the thread that waits for it.
///
/// kick stands for two peers that hand each other one piece of work at a time: two clients of a real service, each
/// with a thread blocked on its own doorbell, ring one another in turn. The service gave out the doorbells and
/// takes no part. The time is half of a round trip: one write, one wake-up, one read.
/// The baseline of the same run, taken in turns with it, is the same ping-pong over two bare eventfds.
/// Counters: of_bare (the ratio), us_per_kick (median), us_worst.
#include <benchmark/benchmark.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/share/ivshmem/client.hpp"
#include "guestmem/share/service.hpp"

namespace guestmem::share {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int patience_ms = 10'000;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
    std::ranges::sort(values);
    return values.empty() ? 0 : values[values.size() / 2];
}

class SilentLog final : public Log {
public:
    void write(LogLevel, std::string_view) override {}
};

/// A share of two slots with one vector, served in a thread of its own.
class ServiceThread {
public:
    ServiceThread() {
        std::string name = std::filesystem::temp_directory_path() / "guestmem-bench-XXXXXX";
        GM_CHECK(::mkdtemp(name.data()) != nullptr);
        folder_ = name;
        std::promise<void> started;
        auto ready = started.get_future();
        thread_ = std::thread{[this, &started] { run(started); }};
        ready.get();
    }
    ServiceThread(const ServiceThread&) = delete;
    ServiceThread& operator=(const ServiceThread&) = delete;
    ~ServiceThread() {
        stopping_.store(true);
        thread_.join();
        std::error_code ignored;
        std::filesystem::remove_all(folder_, ignored);
    }
    [[nodiscard]] std::string socket() const { return folder_ + "/share"; }

private:
    void run(std::promise<void>& started) {
        SilentLog log;
        EventLoop loop = EventLoop::create().value();
        QuickOptions options;
        options.share.name = "bench";
        options.share.size_bytes = 4096;
        options.share.slots = 2;
        options.socket = socket();
        const Service service = Service::create(loop, log, quick_config(options).value()).value();
        started.set_value();
        while (!stopping_.load()) GM_CHECK(loop.run_once(10).has_value());
    }

    std::string folder_;
    std::atomic<bool> stopping_{false};
    std::thread thread_;
};

/// Two ends, each with a doorbell of its own; the far one answers each kick from a thread.
class ClientPair {
public:
    explicit ClientPair(const std::string& socket)
        : near_(Client::connect(socket).value()), far_(Client::connect(socket).value()) {
        GM_CHECK(near_.join(1, patience_ms).has_value() && far_.join(1, patience_ms).has_value());
    }
    [[nodiscard]] bool wait_far() const { return far_.wait(0, patience_ms).value() != 0; }
    void ring_far() const { GM_CHECK(near_.ring(*far_.table().own_id(), 0).has_value()); }
    [[nodiscard]] bool wait_near() const { return near_.wait(0, patience_ms).value() != 0; }
    void ring_near() const { GM_CHECK(far_.ring(*near_.table().own_id(), 0).has_value()); }

private:
    Client near_;
    Client far_;
};

class BarePair {
public:
    [[nodiscard]] bool wait_far() const { return wait(far_); }
    void ring_far() const { ring(far_); }
    [[nodiscard]] bool wait_near() const { return wait(near_); }
    void ring_near() const { ring(near_); }

private:
    static bool wait(const Fd& fd) {
        pollfd entry{.fd = fd.view().number(), .events = POLLIN, .revents = 0};
        std::uint64_t count = 0;
        return ::poll(&entry, 1, patience_ms) == 1 && ::read(entry.fd, &count, sizeof count) == sizeof count;
    }
    static void ring(const Fd& fd) {
        const std::uint64_t one = 1;
        GM_CHECK(::write(fd.view().number(), &one, sizeof one) == sizeof one);
    }

    Fd near_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    Fd far_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
};

template <typename Pair>
class PingPong {
public:
    template <typename... Arguments>
    explicit PingPong(Arguments&&... arguments)
        : pair_(std::forward<Arguments>(arguments)...), thread_([this] {
              while (pair_.wait_far() && !stopping_.load()) pair_.ring_near();
          }) {}
    PingPong(const PingPong&) = delete;
    PingPong& operator=(const PingPong&) = delete;
    ~PingPong() {
        stopping_.store(true);
        pair_.ring_far();
        thread_.join();
    }

    /// Seconds for one kick: half of a round trip.
    double play() {
        const auto start = Clock::now();
        pair_.ring_far();
        GM_CHECK(pair_.wait_near());
        return seconds_since(start) / 2;
    }

private:
    Pair pair_;
    std::atomic<bool> stopping_{false};
    std::thread thread_;
};

void kick(benchmark::State& state) {
    const ServiceThread service;
    PingPong<ClientPair> clients{service.socket()};
    PingPong<BarePair> bare;
    std::vector<double> times;
    std::vector<double> bare_times;
    for ([[maybe_unused]] auto turn : state) {
        bare_times.push_back(bare.play());
        times.push_back(clients.play());
        state.SetIterationTime(times.back());
    }
    state.counters["of_bare"] = median(times) / median(bare_times);
    state.counters["us_per_kick"] = median(times) * 1e6;
    state.counters["us_worst"] = std::ranges::max(times) * 1e6;
}

}  // namespace

BENCHMARK(kick)->UseManualTime()->Unit(benchmark::kMicrosecond);

}  // namespace guestmem::share

BENCHMARK_MAIN();
