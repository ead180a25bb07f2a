// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/service_manager.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <systemd/sd-daemon.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <memory>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem {
namespace {

/// libsystemd answers with -errno; this room's calls with -1 and errno.
int to_status(int answer) {
    if (answer >= 0) return answer;
    errno = -answer;
    return -1;
}

/// A descriptor in flight counts against this user's limit until the manager has taken it: it is given so many times
/// retry_ms, and no more, for the caller may be an event loop.
constexpr int in_flight_tries = 4;
constexpr int retry_ms = 5;

int notify(const std::string& state, const int* fds, unsigned count) {
    for (int turn = 0;; ++turn) {
        const int status = checked_call(SysCall::notify, [&] {
            return to_status(::sd_pid_notify_with_fds(0, 0, state.c_str(), fds, count));
        });
        if (status >= 0 || errno != ETOOMANYREFS || turn == in_flight_tries) return status;
        ::poll(nullptr, 0, retry_ms);
    }
}

Error no_manager(const std::string& what) {
    return Error{Errc::unavailable,
                 fmt::format("{}: there is no service manager ($NOTIFY_SOCKET is not set)", what)};
}

}  // namespace

Result<std::vector<PassedFd>> take_passed_fds() {
    char** names = nullptr;
    const int count =
        checked_call(SysCall::passed_fds, [&] { return to_status(::sd_listen_fds_with_names(1, &names)); });
    if (count < 0)
        return Error::from_errno(errno, "take the descriptors of the service manager ($LISTEN_FDS)");
    std::vector<PassedFd> passed;
    passed.reserve(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) {
        const std::unique_ptr<char, decltype(&std::free)> name{names[i], &std::free};
        passed.push_back({.name = name.get(), .fd = Fd{SD_LISTEN_FDS_START + i}});
    }
    std::free(static_cast<void*>(names));
    return passed;
}

bool has_service_manager() { return environment("NOTIFY_SOCKET").has_value(); }

std::optional<std::uint64_t> descriptor_store_limit() {
    const auto text = environment("FDSTORE");
    if (!text) return std::nullopt;
    std::uint64_t limit = 0;
    const char* const past = text->data() + text->size();
    const auto [rest, status] = std::from_chars(text->data(), past, limit);
    if (status != std::errc{} || rest != past) return std::nullopt;
    return limit;
}

Result<void> store_descriptor(const std::string& name, FdView fd) {
    const std::string what = fmt::format("store descriptor '{}' with the service manager", name);
    const int number = fd.number();
    const int status = notify(fmt::format("FDSTORE=1\nFDNAME={}\nFDPOLL=0", name), &number, 1);
    if (status < 0 && errno == ETOOMANYREFS)
        return Error{Errc::timed_out, ETOOMANYREFS,
                     what + ": too many descriptors of this user are under way (RLIMIT_NOFILE)"};
    if (status < 0) return Error::from_errno(errno, what);
    if (status == 0) return no_manager(what);
    return {};
}

Result<void> remove_stored_descriptors(const std::string& name) {
    const std::string what = fmt::format("remove descriptor '{}' from the service manager", name);
    const int status = notify(fmt::format("FDSTOREREMOVE=1\nFDNAME={}", name), nullptr, 0);
    if (status < 0) return Error::from_errno(errno, what);
    if (status == 0) return no_manager(what);
    return {};
}

Result<void> wait_for_manager(int timeout_ms) {
    constexpr std::uint64_t us_per_ms = 1000;
    const int status = checked_call(SysCall::notify, [&] {
        return to_status(::sd_notify_barrier(0, static_cast<std::uint64_t>(timeout_ms) * us_per_ms));
    });
    if (status < 0) return Error::from_errno(errno, "wait for the service manager");
    if (status == 0) return no_manager("wait for the service manager");
    return {};
}

}  // namespace guestmem
