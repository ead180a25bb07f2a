// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "bench/share/served.hpp"
#include "bench/share/works.hpp"
#include "guestmem/share/ivshmem/client.hpp"
#include "guestmem/share/session.hpp"
#include "guestmem/sys/faults.hpp"

namespace guestmem::bench {
namespace {

constexpr double kick_target = 1.15;
constexpr int patience_ms = 60'000;
constexpr std::uint32_t runs = 20;
constexpr std::uint32_t near_slot = 0;
constexpr std::uint32_t far_slot = 1;

/// One end of a ping-pong over two bare eventfds, waited for as a doorbell is: it is not blocking.
class BareEnd {
public:
    BareEnd(const Fd& own, const Fd& other) : own_(own.view().number()), other_(other.view().number()) {}
    void wait() {
        pollfd entry{.fd = own_, .events = POLLIN, .revents = 0};
        std::uint64_t count = 0;
        if (::poll(&entry, 1, patience_ms) != 1 || ::read(own_, &count, sizeof count) != sizeof count)
            give_up("a bare kick did not come");
    }
    void ring() {
        const std::uint64_t one = 1;
        if (::write(other_, &one, sizeof one) != sizeof one) give_up("a bare kick was not taken");
    }

private:
    int own_;
    int other_;
};

class SessionEnd {
public:
    SessionEnd(const Served& served, std::uint32_t own, std::uint32_t other)
        : session_(
              share::Session::attach({.control = served.control(), .share = "pair", .slot = own}).value()),
          other_(other) {}
    void wait() {
        const std::array<std::uint32_t, 1> vectors{0};
        while (session_.wait({.vectors = vectors, .timeout_ms = patience_ms}).value().kicks.empty()) continue;
    }
    void ring() {
        if (!session_.ring(other_, 0)) give_up("a kick was not taken");
    }
    [[nodiscard]] share::Session& session() { return session_; }

private:
    share::Session session_;
    std::uint32_t other_;
};

class ClientEnd {
public:
    ClientEnd(const Served& served, std::uint32_t other)
        : client_(share::Client::connect(served.socket_of("pair")).value()), other_(other) {
        if (!client_.join(1, patience_ms)) give_up("a client did not join");
    }
    void wait() {
        if (client_.wait(0, patience_ms).value() == 0) give_up("a kick did not come");
    }
    void ring() {
        if (!client_.ring(other_, 0)) give_up("a kick was not taken");
    }

private:
    share::Client client_;
    std::uint32_t other_;
};

enum class Place : std::uint8_t { two_processors, one_processor };

/// Where the scheduler puts the two ends decides more than what they do: they are put, the same way on both sides. This
/// process has the first processor that it may use; undone at the end.
class Processors {
public:
    Processors() {
        ::sched_getaffinity(0, sizeof allowed_, &allowed_);
        put(0, true);
    }
    Processors(const Processors&) = delete;
    Processors& operator=(const Processors&) = delete;
    ~Processors() { ::sched_setaffinity(0, sizeof allowed_, &allowed_); }

    void put(const Child& far, Place place) const { put(far.pid(), place == Place::one_processor); }

private:
    void put(pid_t process, bool is_first) const {
        std::size_t chosen = CPU_SETSIZE;
        for (std::size_t processor = 0; processor < CPU_SETSIZE; ++processor)
            if (CPU_ISSET(processor, &allowed_) && (!is_first || chosen == CPU_SETSIZE)) chosen = processor;
        cpu_set_t only;
        CPU_ZERO(&only);
        CPU_SET(chosen, &only);
        ::sched_setaffinity(process, sizeof only, &only);
    }

    cpu_set_t allowed_{};
};

template <typename End>
[[noreturn]] void answer_for_ever(End& end) {
    for (;;) {
        end.wait();
        end.ring();
    }
}

/// Seconds of a kick: half of there and back.
template <typename End>
double play(End& end, std::uint32_t rounds) {
    const auto start = Clock::now();
    for (std::uint32_t i = 0; i < rounds; ++i) {
        end.ring();
        end.wait();
    }
    return seconds_since(start) / 2 / rounds;
}

/// Checked system calls of one ring: as many as can be failed.
double count_calls(SessionEnd& end) {
    for (std::uint64_t nth = 0;; ++nth) {
        FaultInjector injector{nth};
        static_cast<void>(end.session().ring(far_slot, 0).has_value());
        if (!injector.has_fired()) return static_cast<double>(nth);
    }
}

/// Two ends of bare eventfds, the far one in a process of its own.
class BarePair {
public:
    [[nodiscard]] const Child& far() const { return far_; }
    [[nodiscard]] BareEnd& near() { return near_; }

private:
    std::array<Fd, 2> bells_{Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)},
                             Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)}};
    BareEnd near_{bells_[0], bells_[1]};
    Child far_{[this] {
        BareEnd end{bells_[1], bells_[0]};
        answer_for_ever(end);
    }};
};

/// `far` has the other end.
template <typename End>
Row in_turns(End& end, const Child& far, const Processors& processors, Place place, std::uint32_t kicks) {
    BarePair bare;
    processors.put(far, place);
    processors.put(bare.far(), place);
    const std::uint32_t rounds = std::max(kicks / runs, 1U);
    std::vector<double> ours;
    std::vector<double> theirs;
    play(end, rounds);
    play(bare.near(), rounds);
    // A B B A: neither is always the one that comes second.
    for (std::uint32_t run = 0; run < runs; ++run) {
        if (run % 2 == 0) theirs.push_back(play(bare.near(), rounds));
        ours.push_back(play(end, rounds));
        if (run % 2 != 0) theirs.push_back(play(bare.near(), rounds));
    }
    return {.work = {},
            .unit = "us",
            .reached = median(ours) * 1e6,
            .peer = median(theirs) * 1e6,
            .target = kick_target};
}

template <typename End>
void measure_places(std::string_view what, End& end, const Child& far, const Scale& scale, Table& table) {
    const Processors processors;
    for (const Place place : {Place::two_processors, Place::one_processor}) {
        Row row = in_turns(end, far, processors, place, scale.kicks);
        row.work = fmt::format("{}, {}", what, place == Place::one_processor ? "one CPU" : "two CPUs");
        table.push_back(row);
    }
}

/// Until the far end is there; it rings once.
struct Start {
    std::atomic<bool> is_there{false};
};

}  // namespace

void measure_kick(const Scale& scale, Table& table) {
    Served served{scale.program, {{.name = "pair", .slots = 2, .vectors = 1}}, false};
    served.start();
    served.wait_ready();
    const Common<Start> start;
    const auto wait_for_far = [&] {
        while (!start->is_there.exchange(false)) std::this_thread::yield();
    };
    {
        SessionEnd near{served, near_slot, far_slot};
        table.push_back({"system calls of a kick", "", count_calls(near), 0, 1});
        const Child far{[&] {
            SessionEnd end{served, far_slot, near_slot};
            start->is_there.store(true);
            answer_for_ever(end);
        }};
        wait_for_far();
        // What the count has rung is answered, too.
        near.wait();
        measure_places("kick by sessions", near, far, scale, table);
    }
    served.wait_until_empty();
    ClientEnd near{served, far_slot};
    const Child far{[&] {
        ClientEnd end{served, near_slot};
        start->is_there.store(true);
        answer_for_ever(end);
    }};
    wait_for_far();
    measure_places("kick by ivshmem clients", near, far, scale, table);
}

}  // namespace guestmem::bench
