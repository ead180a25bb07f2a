// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "bench/share/served.hpp"
#include "bench/share/works.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::bench {
namespace {

constexpr double crowd_target = 1.5;
constexpr double bystander_target = 10;
constexpr double memory_target_mib = 16;
const BenchShare quiet{.name = {}, .slots = 4, .vectors = 1};
/// A sender whose sockets are full looks again after that.
constexpr std::chrono::microseconds bare_pause{200};
/// Somebody of another share comes so often.
constexpr std::chrono::milliseconds visit_pause{2};

/// A process that, when told to, tells everybody of everybody: as many messages with a descriptor as the service
/// sends, over socket pairs that are there already.
class BareLoop {
public:
    BareLoop(std::uint32_t clients, std::uint64_t messages) : messages_(messages) {
        auto [ours, theirs] = UnixStream::pair().value();
        std::vector<UnixStream> senders;
        for (std::uint32_t i = 0; i < clients; ++i) {
            auto [near, far] = UnixStream::pair().value();
            clients_.push_back(std::move(near));
            senders.push_back(std::move(far));
        }
        wire_ = std::move(ours);
        child_.emplace([&] { run(theirs.view().number(), senders); });
    }

    /// Seconds until each client has had everything.
    double pass() const {
        const auto start = Clock::now();
        if (::write(wire_.view().number(), "g", 1) != 1) give_up("the bare loop has ended");
        receive_crowd(clients_, messages_);
        return seconds_since(start);
    }

private:
    void run(int wire, const std::vector<UnixStream>& senders) {
        clients_.clear();
        wire_ = UnixStream{};
        std::vector<Fd> fds;
        for (std::uint64_t i = 0; i < messages_; ++i)
            fds.emplace_back(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        char word = 0;
        while (::read(wire, &word, 1) == 1) tell_all(senders, fds);
    }

    static void tell_all(const std::vector<UnixStream>& senders, const std::vector<Fd>& fds) {
        std::vector<std::size_t> next(senders.size(), 0);
        std::size_t count_left = senders.size();
        for (;;) {
            for (std::size_t i = 0; i < senders.size(); ++i) {
                std::size_t& at = next[i];
                if (at == fds.size()) continue;
                const int socket = senders[i].view().number();
                while (at < fds.size() && send_one(socket, 0, fds[at].view().number(), MSG_DONTWAIT)) ++at;
                if (at == fds.size()) --count_left;
            }
            if (count_left == 0) return;
            std::this_thread::sleep_for(bare_pause);
        }
    }

    std::uint64_t messages_;
    std::vector<UnixStream> clients_;
    UnixStream wire_;
    std::optional<Child> child_;
};

/// Seconds that one client takes from its connect to its last message, and its leave.
double visit(const std::string& path, std::uint64_t messages) {
    const auto start = Clock::now();
    const UnixStream stream = UnixStream::connect(path).value();
    receive_all(stream.view().number(), messages);
    return seconds_since(start);
}

/// A process that accepts and tells one client after the other, blocking: what a join costs at least.
double bare_visit() {
    const TemporaryFolder folder;
    const UnixListener listener = UnixListener::create({.path = folder.path_of("s")}).value();
    const Child teller{[&] {
        const Fd fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
        for (;;) {
            const Fd stream{::accept4(listener.view().number(), nullptr, nullptr, SOCK_CLOEXEC)};
            if (!stream.is_open()) {
                std::this_thread::yield();
                continue;
            }
            for (std::uint64_t i = 0; i < quiet.messages(); ++i)
                send_one(stream.view().number(), 0, fd.view().number(), 0);
        }
    }};
    std::vector<double> times;
    for (int i = 0; i < 200; ++i) {
        std::this_thread::sleep_for(visit_pause);
        times.push_back(visit(folder.path_of("s"), quiet.messages()));
    }
    return median(times);
}

/// A process that joins another share again and again while there is a crowd.
class Bystander {
public:
    explicit Bystander(const std::string& path) : child_([this, path] { run(path); }) {}
    Bystander(const Bystander&) = delete;
    Bystander& operator=(const Bystander&) = delete;

    void note(bool is_noting) { times_->is_noting.store(is_noting); }
    [[nodiscard]] std::vector<double> seconds() const {
        const std::size_t count = std::min(times_->count.load(), times_->seconds.size());
        return {times_->seconds.begin(), times_->seconds.begin() + static_cast<std::ptrdiff_t>(count)};
    }

private:
    struct Times {
        std::atomic<bool> is_noting{false};
        std::atomic<std::size_t> count{0};
        std::array<double, 20'000> seconds{};
    };

    void run(const std::string& path) {
        for (;;) {
            std::this_thread::sleep_for(visit_pause);
            if (!times_->is_noting.load()) continue;
            const double took = visit(path, quiet.messages());
            if (!times_->is_noting.load()) continue;
            if (const std::size_t at = times_->count.load(); at < times_->seconds.size()) {
                times_->seconds[at] = took;
                times_->count.store(at + 1);
            }
        }
    }

    Common<Times> times_;
    Child child_;
};

struct Joined {
    double seconds = 0;
    Memory service;
};

Joined join_crowd(const Served& served, const BenchShare& crowd) {
    std::vector<UnixStream> clients;
    clients.reserve(crowd.slots);
    const auto start = Clock::now();
    for (std::uint32_t i = 0; i < crowd.slots; ++i)
        clients.push_back(UnixStream::connect(served.socket_of(crowd.name)).value());
    receive_crowd(clients, crowd.messages());
    return {.seconds = seconds_since(start), .service = memory_of(served.pid())};
}

struct Crowd {
    std::vector<double> seconds;
    std::vector<double> bare;
    std::vector<double> visits;
    Memory service;
};

Crowd measure_crowd(const Scale& scale, bool has_keeper, bool has_bystander) {
    const BenchShare crowd{.name = "crowd", .slots = scale.slots, .vectors = 1};
    BenchShare other = quiet;
    other.name = "quiet";
    Served served{scale.program, {crowd, other}, has_keeper};
    served.start();
    served.wait_ready();
    const BareLoop bare{crowd.slots, crowd.messages()};
    Bystander bystander{served.socket_of(other.name)};
    Crowd found;
    for (std::uint32_t round = 0; round <= scale.rounds; ++round) {
        const double bare_seconds = bare.pass();
        bystander.note(has_bystander && round > 0);
        const Joined joined = join_crowd(served, crowd);
        bystander.note(false);
        served.wait_until_empty();
        // The first round warms up.
        if (round == 0) continue;
        found.bare.push_back(bare_seconds);
        found.seconds.push_back(joined.seconds);
        found.service.resident = std::max(found.service.resident, joined.service.resident);
        found.service.peak = joined.service.peak;
    }
    found.visits = bystander.seconds();
    return found;
}

void add_visits(std::vector<double> visits, double own, Table& table) {
    if (visits.empty()) {
        table.push_back({"nobody came meanwhile: a small crowd", "us", 0, own * 1e6});
        return;
    }
    std::ranges::sort(visits);
    const double tenth = visits[visits.size() * 9 / 10];
    table.push_back(
        {"meanwhile one joins another share", "us", median(visits) * 1e6, own * 1e6, bystander_target});
    table.push_back({"  a tenth of those is slower than", "us", tenth * 1e6, own * 1e6});
    table.push_back({"  the slowest of those", "us", visits.back() * 1e6, own * 1e6});
}

}  // namespace

void measure_join(const Scale& scale, Table& table) {
    const std::string crowd = fmt::format("{} clients join {} slots", scale.slots, scale.slots);
    const Crowd alone = measure_crowd(scale, false, false);
    const Crowd kept = measure_crowd(scale, true, false);
    const Crowd seen = measure_crowd(scale, false, true);
    table.push_back({crowd, "ms", median(alone.seconds) * 1e3, median(alone.bare) * 1e3, crowd_target});
    table.push_back({crowd + ", kept", "ms", median(kept.seconds) * 1e3, median(kept.bare) * 1e3});
    add_visits(seen.visits, bare_visit(), table);
    table.push_back({"service's resident memory", "MiB", alone.service.resident, 0, memory_target_mib});
    table.push_back({"service's resident memory, kept", "MiB", kept.service.resident, 0, memory_target_mib});
    table.push_back({"  the most it was", "MiB", std::max(kept.service.peak, alone.service.peak)});
}

}  // namespace guestmem::bench
