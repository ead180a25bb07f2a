// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/userfaultfd.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

// What <linux/userfaultfd.h> of 6.1 does not have.
constexpr std::uint64_t feature_poison = std::uint64_t{1} << 14;
struct PoisonRequest {
    uffdio_range range;
    __u64 mode;
    __s64 updated;
};
constexpr unsigned long poison_request = _IOWR(UFFDIO, 0x08, PoisonRequest);
/// Of /dev/userfaultfd, since 6.1.
constexpr unsigned long device_new = _IO(UFFDIO, 0x00);

constexpr std::uint64_t needed_features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;

std::uint64_t address_of(const void* at) { return reinterpret_cast<std::uintptr_t>(at); }
uffdio_range range_of(std::span<std::byte> pages) {
    return {.start = address_of(pages.data()), .len = pages.size()};
}
std::uint64_t page_bytes() { return static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)); }

int ask(FdView fd, unsigned long request, void* argument) {
    return checked_call(SysCall::ioctl, [&] { return ::ioctl(fd.number(), request, argument); });
}

/// "what: 4096 bytes at 0x7f..."
Error error_of(int os_error, const char* what, std::span<const std::byte> pages) {
    return Error::from_errno(os_error,
                             fmt::format("{}: {} bytes at {}", what, pages.size(), fmt::ptr(pages.data())));
}

Result<Fd> open_it(const UserFaultFd::Options& options) {
    const int flags = O_CLOEXEC | O_NONBLOCK | (options.user_faults_only ? UFFD_USER_MODE_ONLY : 0);
    Fd fd{static_cast<int>(
        checked_call(SysCall::userfaultfd, [&] { return ::syscall(SYS_userfaultfd, flags); }))};
    if (fd.is_open()) return fd;
    const int refused = errno;
    if (refused != EPERM) return Error::from_errno(refused, "userfaultfd");
    const auto device = open_file("/dev/userfaultfd", OpenMode::read_write);
    if (device) {
        Fd made{checked_call(SysCall::ioctl,
                             [&] { return ::ioctl(device->view().number(), device_new, flags); })};
        if (made.is_open()) return made;
    }
    return Error{
        Errc::permission_denied, refused,
        "userfaultfd: this process may not answer the kernel's own faults: give it CAP_SYS_PTRACE or "
        "access to /dev/userfaultfd, or set the sysctl vm.unprivileged_userfaultfd to 1"};
}

/// One request that may be done in part: what it said is in `answer`, a count of bytes or an errno below zero.
/// Returns whether to go on.
Result<bool> account(int status, std::int64_t answer, std::span<const std::byte> left, const char* what,
                     PagesGiven& given) {
    const int os_error = status == 0 ? 0 : errno;
    if (answer > 0) {
        const std::uint64_t done = std::min<std::uint64_t>(static_cast<std::uint64_t>(answer), left.size());
        given.done_bytes += done;
        given.given_bytes += done;
        return true;
    }
    if (os_error == EEXIST) {
        given.done_bytes += std::min<std::uint64_t>(page_bytes(), left.size());
        return true;
    }
    if (os_error == EAGAIN) {
        given.is_interrupted = true;
        return false;
    }
    return error_of(os_error == 0 ? EIO : os_error, what, left);
}

/// `request` is asked for what is left until all is done; it returns the status and what the kernel said.
template <typename Request>
Result<PagesGiven> give_all(std::span<const std::byte> pages, const char* what, Request&& request) {
    PagesGiven given;
    if (pages.size() % page_bytes() != 0)
        return Error{Errc::invalid_argument,
                     fmt::format("{}: {} bytes are no whole pages of {}", what, pages.size(), page_bytes())};
    while (given.done_bytes < pages.size()) {
        std::int64_t answer = 0;
        const auto left = pages.subspan(given.done_bytes);
        const int status = request(given.done_bytes, left.size(), answer);
        const auto goes_on = account(status, answer, left, what, given);
        // What was done has to be known; who goes on behind it meets the error again.
        if (!goes_on && given.done_bytes == 0) return goes_on.error();
        if (!goes_on || !*goes_on) break;
    }
    return given;
}

}  // namespace

Result<UserFaultFd> UserFaultFd::create(const Options& options) {
    Fd fd = GM_TRY(open_it(options));
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = needed_features;
    if (ask(fd, UFFDIO_API, &api) < 0)
        return Error::from_errno(errno, "userfaultfd: ask for reports of removed pages");
    // The answer tells all that the kernel has, asked for or not.
    return UserFaultFd{std::move(fd), (api.features & feature_poison) != 0};
}

Result<void> UserFaultFd::watch_missing(std::span<std::byte> pages) const {
    if (pages.empty()) return {};
    uffdio_register request{};
    request.range = range_of(pages);
    request.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (ask(fd_, UFFDIO_REGISTER, &request) < 0) return error_of(errno, "watch for missing pages", pages);
    constexpr std::uint64_t needed = std::uint64_t{1} << _UFFDIO_COPY | std::uint64_t{1} << _UFFDIO_ZEROPAGE;
    if ((request.ioctls & needed) == needed) return {};
    GM_TRY(unwatch(pages));
    return error_of(EOPNOTSUPP, "watch for missing pages: no such pages can be given", pages);
}

Result<void> UserFaultFd::unwatch(std::span<std::byte> pages) const {
    if (pages.empty()) return {};
    uffdio_range range = range_of(pages);
    if (ask(fd_, UFFDIO_UNREGISTER, &range) < 0) return error_of(errno, "watch no more", pages);
    return {};
}

Result<std::vector<FaultEvent>> UserFaultFd::read_events() const {
    std::array<uffd_msg, max_events> messages{};
    const ssize_t count = checked_call(
        SysCall::read, [&] { return ::read(fd_.view().number(), messages.data(), sizeof messages); });
    if (count < 0 && errno != EAGAIN) return Error::from_errno(errno, "read faults");
    std::vector<FaultEvent> events;
    const std::size_t count_messages = count < 0 ? 0 : static_cast<std::size_t>(count) / sizeof(uffd_msg);
    for (const uffd_msg& message : std::span{messages}.first(count_messages)) {
        // The kernel's numbers for our own memory.
        const auto span_at = [](std::uint64_t first, std::uint64_t size_bytes) {
            return std::span{reinterpret_cast<std::byte*>(first), size_bytes};
        };
        if (message.event == UFFD_EVENT_PAGEFAULT) {
            const auto& fault = message.arg.pagefault;
            events.push_back({.kind = FaultEvent::Kind::page_missing,
                              .is_write = (fault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0,
                              .bytes = span_at(fault.address & ~(page_bytes() - 1), page_bytes())});
        } else if (message.event == UFFD_EVENT_REMOVE || message.event == UFFD_EVENT_UNMAP) {
            const auto& gone = message.arg.remove;
            events.push_back({.kind = FaultEvent::Kind::pages_removed,
                              .bytes = span_at(gone.start, gone.end - gone.start)});
        }
    }
    return events;
}

Result<PagesGiven> UserFaultFd::copy_pages(std::byte* to, std::span<const std::byte> from) const {
    const std::span<const std::byte> pages{to, from.size()};
    return give_all(pages, "give pages", [&](std::uint64_t done, std::uint64_t size, std::int64_t& answer) {
        uffdio_copy request{};
        request.dst = address_of(to) + done;
        request.src = address_of(from.data()) + done;
        request.len = size;
        const int status = ask(fd_, UFFDIO_COPY, &request);
        answer = request.copy;
        return status;
    });
}

Result<PagesGiven> UserFaultFd::zero_pages(std::span<std::byte> pages) const {
    return give_all(pages, "give pages of zeros",
                    [&](std::uint64_t done, std::uint64_t size, std::int64_t& answer) {
                        uffdio_zeropage request{};
                        request.range = range_of(pages.subspan(done, size));
                        const int status = ask(fd_, UFFDIO_ZEROPAGE, &request);
                        answer = request.zeropage;
                        return status;
                    });
}

Result<PagesGiven> UserFaultFd::poison_pages(std::span<std::byte> pages) const {
    if (!can_poison_)
        return Error{Errc::unsupported, EOPNOTSUPP,
                     "poison pages: this kernel cannot, Linux 6.6 and later can"};
    return give_all(pages, "poison pages", [&](std::uint64_t done, std::uint64_t size, std::int64_t& answer) {
        PoisonRequest request{};
        request.range = range_of(pages.subspan(done, size));
        const int status = ask(fd_, poison_request, &request);
        answer = request.updated;
        return status;
    });
}

Result<void> UserFaultFd::wake(std::span<std::byte> pages) const {
    uffdio_range range = range_of(pages);
    if (ask(fd_, UFFDIO_WAKE, &range) < 0) return error_of(errno, "wake who waits for pages", pages);
    return {};
}

}  // namespace guestmem
