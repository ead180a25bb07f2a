// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bench/share/served.hpp"
#include "bench/share/works.hpp"
#include "guestmem/control/client.hpp"
#include "guestmem/share/config_file.hpp"
#include "guestmem/share/keeper/keeper_link.hpp"
#include "guestmem/share/service.hpp"
#include "guestmem/sys/event_loop.hpp"

namespace guestmem::bench {
namespace {

constexpr double gap_target_ms = 25;
constexpr std::uint32_t vectors = 4;

class SilentLog final : public Log {
public:
    void write(LogLevel, std::string_view) override {}
};

double now_ms() { return std::chrono::duration<double, std::milli>(Clock::now().time_since_epoch()).count(); }

/// When a newcomer, in a process of its own, had its first message and its last.
struct NewcomerTimes {
    std::atomic<bool> may_go{false};
    std::atomic<bool> is_over{false};
    double first_ms = 0;
    double whole_ms = 0;
};

class Newcomer {
public:
    Newcomer(const std::string& path, std::uint64_t messages)
        : child_([this, path, messages] {
              while (!times_->may_go.load()) std::this_thread::sleep_for(std::chrono::microseconds{100});
              const UnixStream stream = UnixStream::connect(path).value();
              receive_all(stream.view().number(), 1);
              times_->first_ms = now_ms();
              receive_all(stream.view().number(), messages - 1);
              times_->whole_ms = now_ms();
              times_->is_over.store(true);
          }) {}
    Newcomer(const Newcomer&) = delete;
    Newcomer& operator=(const Newcomer&) = delete;

    void go() { times_->may_go.store(true); }
    const NewcomerTimes& result() {
        child_.join();
        if (!times_->is_over.load()) give_up("a newcomer was not served");
        return *times_.operator->();
    }

private:
    Common<NewcomerTimes> times_;
    Child child_;
};

/// Waits for the answer to a call that was made while there was no service.
void ask_in_the_gap(const Served& served) {
    auto client = control::Client::connect(served.control());
    if (!client) give_up("in the gap: " + client.error().message());
    if (const auto answer = client->call("share.list", "{}"); !answer)
        give_up("in the gap: " + answer.error().message());
}

struct Gap {
    std::vector<double> reaped;
    std::vector<double> answered;
    std::vector<double> first;
    std::vector<double> whole;
};

void kill_once(Served& served, const BenchShare& share, Gap& gap) {
    Newcomer newcomer{served.socket_of(share.name), share.messages()};
    const double start = now_ms();
    served.kill();
    gap.reaped.push_back(now_ms() - start);
    served.start();
    newcomer.go();
    ask_in_the_gap(served);
    gap.answered.push_back(now_ms() - start);
    const NewcomerTimes& times = newcomer.result();
    gap.first.push_back(times.first_ms - start);
    gap.whole.push_back(times.whole_ms - start);
}

/// What an instance does between its start and its first answer, by the same functions as the program.
struct Parts {
    double join_ms = 0;
    double adopt_ms = 0;
    double turn_ms = 0;
};

void take_over_here(const Served& served, Parts& parts) {
    SilentLog log;
    auto config = share::read_config_file(served.config());
    if (!config) give_up(config.error().message());
    EventLoop loop = EventLoop::create().value();
    double before = now_ms();
    const auto lap = [&] { return now_ms() - std::exchange(before, now_ms()); };
    auto inheritance = share::join_keeper({.path = served.keeper()});
    if (!inheritance) give_up(inheritance.error().message());
    parts.join_ms = lap();
    share::ServiceOptions options;
    options.inheritance = std::move(*inheritance);
    auto service = share::Service::create(loop, log, std::move(*config), std::move(options));
    if (!service) give_up(service.error().message());
    parts.adopt_ms = lap();
    // The first turn looks at every client.
    if (!loop.run_once(0)) give_up("the loop does not turn");
    parts.turn_ms = lap();
    // Killed as the others are: the end of this process says nothing to anybody.
    ::_exit(0);
}

/// Seconds for a program that starts, says which version it is, and ends.
double measure_exec(const std::string& program) {
    std::vector<double> times;
    for (int i = 0; i < 9; ++i) {
        const double start = now_ms();
        Child child{{program, "--version"}, "/dev/null"};
        child.join();
        times.push_back(now_ms() - start);
    }
    return median(times);
}

std::vector<UnixStream> join_all(const Served& served, const BenchShare& share) {
    std::vector<UnixStream> clients;
    // One slot is left for newcomers.
    for (std::uint32_t i = 0; i + 1 < share.slots; ++i)
        clients.push_back(UnixStream::connect(served.socket_of(share.name)).value());
    receive_crowd(clients, share.messages());
    return clients;
}

void check_that_nobody_was_closed(const std::vector<UnixStream>& clients) {
    for (const UnixStream& client : clients) {
        char byte = 0;
        if (::recv(client.view().number(), &byte, 1, MSG_DONTWAIT) >= 0)
            give_up("an old client was told something");
    }
}

void break_down(const Scale& scale, Served& served, Table& table) {
    std::vector<double> join;
    std::vector<double> adopt;
    std::vector<double> turn;
    for (std::uint32_t round = 0; round < scale.rounds; ++round) {
        served.kill();
        const Common<Parts> parts;
        Child instance{[&] { take_over_here(served, *parts.operator->()); }};
        instance.join();
        join.push_back(parts->join_ms);
        adopt.push_back(parts->adopt_ms);
        turn.push_back(parts->turn_ms);
    }
    table.push_back({"  of it: a program's start and end", "ms", measure_exec(scale.program)});
    table.push_back({"  of it: join of the keeper", "ms", median(join)});
    table.push_back({"  of it: adoption", "ms", median(adopt)});
    table.push_back({"  of it: the first turn", "ms", median(turn)});
    served.start();
    served.wait_ready();
}

}  // namespace

void measure_take_over(const Scale& scale, Table& table) {
    const BenchShare share{.name = "crowd", .slots = scale.slots, .vectors = vectors};
    Served served{scale.program, {share}, true};
    served.start();
    served.wait_ready();
    {
        const std::vector<UnixStream> clients = join_all(served, share);
        // The service knows that the last message has left: one in doubt would be closed.
        served.wait_ready();
        Gap gap;
        for (std::uint32_t round = 0; round < scale.rounds; ++round) kill_once(served, share, gap);
        check_that_nobody_was_closed(clients);
        const std::string what = fmt::format("killed with {} x {}: ", share.slots, share.vectors);
        table.push_back({what + "reaped", "ms", median(gap.reaped)});
        table.push_back({"  an old client's call is answered", "ms", median(gap.answered), 0, gap_target_ms});
        table.push_back({"  a newcomer has its first message", "ms", median(gap.first), 0, gap_target_ms});
        table.push_back({"  and all of its messages", "ms", median(gap.whole)});
        break_down(scale, served, table);
        check_that_nobody_was_closed(clients);
        table.push_back({"  the service's resident memory", "MiB", memory_of(served.pid()).resident});
        table.push_back({"  the keeper's resident memory", "MiB", memory_of(served.keeper_pid()).resident});
    }
}

}  // namespace guestmem::bench
