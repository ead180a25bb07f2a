// SPDX-License-Identifier: Apache-2.0
/// What joining a share costs: connect to the service's socket, receive every doorbell, one message per recvmsg,
/// and close each descriptor, as a client that looks at everything once.
///
/// join/S/V stands for one VM that starts while nothing else happens: a share of S slots with V vectors has
/// S x V + 3 messages for it. crowd/S/V stands for a host that comes up: S clients at once, until each has
/// everything.
/// attach is a session's, by the control socket, to a share of 16 slots with one vector: its first messages together
/// and, in turns with that, one by one (us_apart); cpu_us_* is processor time of both sides.
/// The baseline of the same run, taken in turns with it, is the bare loop: a thread that passes as many eventfds
/// over as many socket pairs, one client after the other, one message per sendmsg, blocking, to the same reader.
/// Counters: of_bare (the ratio), us_per_join, us_per_message, joins_per_s; longest_turn_us is processor time of
/// the longest turn of the service's loop, the time for which everybody else waits for one client.
#include <benchmark/benchmark.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <future>
#include <semaphore>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/control/client.hpp"
#include "guestmem/share/calls.hpp"
#include "guestmem/share/service.hpp"
#include "guestmem/share/session_link.hpp"
#include "guestmem/sys/deadline.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::share {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

double thread_seconds() {
    timespec now{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

double median(std::vector<double> values) {
    std::ranges::sort(values);
    return values.empty() ? 0 : values[values.size() / 2];
}

struct Shape {
    std::uint32_t slots;
    std::uint32_t vectors;

    [[nodiscard]] std::uint64_t doorbells() const { return std::uint64_t{slots} * vectors; }
    /// Version, id and memory come in front.
    [[nodiscard]] std::uint64_t messages() const { return doorbells() + 3; }
};

class SilentLog final : public Log {
public:
    void write(LogLevel, std::string_view) override {}
};

class TemporaryFolder {
public:
    TemporaryFolder() {
        std::string name = std::filesystem::temp_directory_path() / "guestmem-bench-XXXXXX";
        GM_CHECK(::mkdtemp(name.data()) != nullptr);
        path_ = name;
    }
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    ~TemporaryFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    [[nodiscard]] const std::string& path() const { return path_; }

private:
    std::string path_;
};

/// The real service of one share, in a thread of its own.
class ServiceThread {
public:
    explicit ServiceThread(Shape shape) : shape_(shape) {
        std::promise<std::string> started;
        auto failure = started.get_future();
        thread_ = std::thread{[this, &started] { run(started); }};
        failure_ = failure.get();
    }
    ServiceThread(const ServiceThread&) = delete;
    ServiceThread& operator=(const ServiceThread&) = delete;
    ~ServiceThread() {
        stopping_.store(true);
        thread_.join();
    }

    [[nodiscard]] const std::string& failure() const { return failure_; }
    [[nodiscard]] std::string socket() const { return folder_.path() + "/share"; }
    [[nodiscard]] std::string control() const { return folder_.path() + "/control"; }
    [[nodiscard]] double longest_turn_seconds() const { return longest_turn_.load(); }
    /// Until the service has noticed that all clients have left.
    void wait_until_empty() const {
        while (count_.load() != 0) std::this_thread::yield();
    }

private:
    [[nodiscard]] ServiceConfig config() const {
        ServiceConfig config;
        config.control.socket.path = control();
        // A crowd takes seconds here, and how many depends on the machine.
        config.limits.handshake_timeout_ms = 600'000;
        config.shares.push_back(
            {.name = "bench", .size_bytes = 65'536, .vectors = shape_.vectors, .slots = shape_.slots});
        DoorConfig& door = config.doors.emplace_back();
        door.share = "bench";
        door.socket.path = socket();
        return config;
    }

    void run(std::promise<std::string>& started) {
        SilentLog log;
        EventLoop loop = EventLoop::create().value();
        auto service = Service::create(loop, log, config());
        started.set_value(service ? std::string{} : service.error().message());
        if (!service) return;
        double before = thread_seconds();
        while (!stopping_.load()) {
            GM_CHECK(loop.run_once(10).has_value());
            const double after = thread_seconds();
            longest_turn_.store(std::max(longest_turn_.load(), after - before));
            before = after;
            count_.store(service->counts().sessions);
        }
    }

    Shape shape_;
    TemporaryFolder folder_;
    std::atomic<bool> stopping_{false};
    std::atomic<std::size_t> count_{0};
    std::atomic<double> longest_turn_{0};
    std::string failure_;
    std::thread thread_;
};

/// One message of 8 bytes; its descriptor, if any, is closed at once. False when there is none or all is over.
bool receive_one(int socket, int flags) {
    std::int64_t value = 0;
    iovec part{&value, sizeof value};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    if (::recvmsg(socket, &header, MSG_CMSG_CLOEXEC | flags) != sizeof value) return false;
    if (const cmsghdr* rights = CMSG_FIRSTHDR(&header); rights != nullptr) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(rights), sizeof fd);
        ::close(fd);
    }
    return true;
}

void receive_all(int socket, std::uint64_t messages) {
    for (std::uint64_t i = 0; i < messages; ++i) GM_CHECK(receive_one(socket, 0));
}

void send_one(int socket, std::int64_t value, int fd) {
    iovec part{&value, sizeof value};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))]{};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    cmsghdr* const rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    GM_CHECK(::sendmsg(socket, &header, MSG_NOSIGNAL) == sizeof value);
}

/// All clients in one thread that reads whatever is there.
void receive_crowd(const std::vector<UnixStream>& clients, std::uint64_t messages) {
    const Fd epoll{::epoll_create1(EPOLL_CLOEXEC)};
    std::vector<std::uint64_t> left(clients.size(), messages);
    for (std::size_t i = 0; i < clients.size(); ++i) {
        epoll_event event{.events = EPOLLIN, .data = {.u64 = i}};
        GM_CHECK(::epoll_ctl(epoll.view().number(), EPOLL_CTL_ADD, clients[i].view().number(), &event) == 0);
    }
    std::size_t count_open = clients.size();
    while (count_open != 0) {
        epoll_event events[64];
        const int count = ::epoll_wait(epoll.view().number(), events, 64, 60'000);
        GM_CHECK(count > 0);
        for (int i = 0; i < count; ++i) {
            std::uint64_t& rest = left[events[i].data.u64];
            const int socket = clients[events[i].data.u64].view().number();
            const bool was_open = rest != 0;
            while (rest != 0 && receive_one(socket, MSG_DONTWAIT)) --rest;
            if (was_open && rest == 0) --count_open;
        }
    }
}

/// The bare loop: a thread that, when told to, passes `doorbells` eventfds to each of some clients in turn.
class BareLoop {
public:
    BareLoop(std::uint64_t doorbells, std::uint64_t clients) {
        for (std::uint64_t i = 0; i < clients; ++i) {
            auto [ours, theirs] = UnixStream::pair().value();
            senders_.push_back(std::move(ours));
            clients_.push_back(std::move(theirs));
        }
        for (std::uint64_t i = 0; i < doorbells; ++i) fds_.emplace_back(::eventfd(0, EFD_CLOEXEC));
        thread_ = std::thread{[this] { run(); }};
    }
    BareLoop(const BareLoop&) = delete;
    BareLoop& operator=(const BareLoop&) = delete;
    ~BareLoop() {
        stopping_.store(true);
        go_.release();
        thread_.join();
    }

    double pass() {
        const auto start = Clock::now();
        go_.release();
        if (clients_.size() == 1) {
            receive_all(clients_.front().view().number(), fds_.size());
        } else {
            receive_crowd(clients_, fds_.size());
        }
        return seconds_since(start);
    }

private:
    void run() {
        for (;;) {
            go_.acquire();
            if (stopping_.load()) return;
            for (const UnixStream& sender : senders_)
                for (const Fd& fd : fds_) send_one(sender.view().number(), 0, fd.view().number());
        }
    }

    std::vector<UnixStream> senders_;
    std::vector<UnixStream> clients_;
    std::vector<Fd> fds_;
    std::counting_semaphore<> go_{0};
    std::atomic<bool> stopping_{false};
    std::thread thread_;
};

/// False, and the reason is shown, when this machine does not let one process have so many descriptors: those of
/// the service, of the bare loop, and a connection per client.
bool fits(benchmark::State& state, Shape shape, std::uint64_t clients) {
    const std::uint64_t needed = 2 * shape.doorbells() + shape.slots + 4 * clients + 200;
    const std::uint64_t limit = raise_descriptor_limit();
    if (needed <= limit) return true;
    const std::string why =
        "skipped: needs " + std::to_string(needed) + " descriptors, the limit is " + std::to_string(limit);
    state.SkipWithError(why.c_str());
    return false;
}

struct Times {
    std::vector<double> service;
    std::vector<double> bare;
};

void report(benchmark::State& state, const Times& times, double joins, double messages) {
    const double time = median(times.service);
    state.counters["of_bare"] = time / median(times.bare);
    state.counters["us_per_join"] = time / joins * 1e6;
    state.counters["us_per_message"] = time / messages * 1e6;
    state.counters["joins_per_s"] = joins / time;
}

Shape shape_of(const benchmark::State& state) {
    return {static_cast<std::uint32_t>(state.range(0)), static_cast<std::uint32_t>(state.range(1))};
}

void join(benchmark::State& state) {
    const Shape shape = shape_of(state);
    if (!fits(state, shape, 1)) return;
    const ServiceThread service{shape};
    if (!service.failure().empty()) return state.SkipWithError(service.failure().c_str());
    BareLoop bare{shape.doorbells(), 1};
    Times times;
    for ([[maybe_unused]] auto turn : state) {
        times.bare.push_back(bare.pass());
        const auto start = Clock::now();
        {
            const UnixStream stream = UnixStream::connect(service.socket()).value();
            receive_all(stream.view().number(), shape.messages());
            times.service.push_back(seconds_since(start));
        }
        state.SetIterationTime(times.service.back());
        service.wait_until_empty();
    }
    report(state, times, 1, static_cast<double>(shape.messages()));
}

void crowd(benchmark::State& state) {
    const Shape shape = shape_of(state);
    if (!fits(state, shape, shape.slots)) return;
    const ServiceThread service{shape};
    if (!service.failure().empty()) return state.SkipWithError(service.failure().c_str());
    BareLoop bare{shape.doorbells(), shape.slots};
    Times times;
    for ([[maybe_unused]] auto turn : state) {
        times.bare.push_back(bare.pass());
        const auto start = Clock::now();
        {
            std::vector<UnixStream> clients;
            clients.reserve(shape.slots);
            for (std::uint32_t i = 0; i < shape.slots; ++i)
                clients.push_back(UnixStream::connect(service.socket()).value());
            receive_crowd(clients, shape.messages());
            times.service.push_back(seconds_since(start));
        }
        state.SetIterationTime(times.service.back());
        service.wait_until_empty();
    }
    report(state, times, shape.slots, static_cast<double>(shape.messages()) * shape.slots);
    state.counters["longest_turn_us"] = service.longest_turn_seconds() * 1e6;
}

/// Of all threads.
double process_seconds() {
    timespec now{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

struct AttachTimes {
    std::vector<double> passed;
    std::vector<double> worked;  ///< by both sides
};

void attach_once(const ServiceThread& service, bool takes_batches, AttachTimes& times) {
    const auto start = Clock::now();
    const double worked = process_seconds();
    const AttachCall call{.share = "bench", .is_session = true, .takes_batches = takes_batches};
    auto control = control::Client::connect(service.control(), 10'000).value();
    auto answer = control.call("share.attach", to_json(call)).value();
    const auto link =
        enter_link(std::move(answer), {.share = "bench"}, Deadline{std::chrono::milliseconds{10'000}});
    GM_CHECK(link.has_value());
    times.passed.push_back(seconds_since(start));
    times.worked.push_back(process_seconds() - worked);
}

void attach(benchmark::State& state) {
    const ServiceThread service{{.slots = 16, .vectors = 1}};
    if (!service.failure().empty()) return state.SkipWithError(service.failure().c_str());
    AttachTimes together;
    AttachTimes apart;
    for ([[maybe_unused]] auto turn : state) {
        attach_once(service, false, apart);
        service.wait_until_empty();
        attach_once(service, true, together);
        service.wait_until_empty();
        state.SetIterationTime(together.passed.back());
    }
    state.counters["us_together"] = median(together.passed) * 1e6;
    state.counters["us_apart"] = median(apart.passed) * 1e6;
    state.counters["cpu_us_together"] = median(together.worked) * 1e6;
    state.counters["cpu_us_apart"] = median(apart.worked) * 1e6;
}

}  // namespace

BENCHMARK(attach)->Iterations(2000)->UseManualTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(join)
    ->ArgNames({"slots", "vectors"})
    ->ArgsProduct({{1, 16, 256, 1000}, {1, 4}})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);
// A crowd takes seconds: few turns, fixed ones.
BENCHMARK(crowd)
    ->ArgNames({"slots", "vectors"})
    ->Args({16, 4})
    ->Iterations(50)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK(crowd)
    ->ArgNames({"slots", "vectors"})
    ->Args({256, 4})
    ->Args({1000, 1})
    ->Iterations(3)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace guestmem::share

BENCHMARK_MAIN();
