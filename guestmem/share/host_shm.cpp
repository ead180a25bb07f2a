// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/host_shm.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "guestmem/share/config.hpp"
#include "guestmem/sys/deadline.hpp"
#include "guestmem/sys/poll.hpp"

namespace guestmem::share {
namespace {

Error not_attached() { return Error{Errc::not_found, ENOTCONN, "not attached to a share: attach first"}; }

/// The next service, or the next share of this name, need not be like the one that was attached to.
Error without_pokes(const std::string& name) {
    return Error{Errc::unsupported, ENOTSUP,
                 fmt::format("share '{}' came back with more than {} slots, or without the right to notify",
                             name, max_senders)};
}

/// The documented number for what the service, the kernel or a limit said.
int os_error_of(const Error& error) {
    switch (error.code()) {
        case Errc::permission_denied: return EACCES;
        case Errc::not_found: return ENOENT;
        case Errc::busy: return EBUSY;
        // All slots held; what else runs out is memory, or descriptors.
        case Errc::exhausted:
            return error.os_error() == ENOSPC || error.os_error() == EUSERS ? EBUSY : ENOMEM;
        case Errc::timed_out: return ETIMEDOUT;
        case Errc::unsupported: return ENOTSUP;
        case Errc::unavailable: return ECONNREFUSED;
        default: return EIO;
    }
}

Error documented(const Error& error) { return Error{error.code(), os_error_of(error), error.message()}; }

Result<void> check_options(const HostShmOptions& options) {
    if (const auto problem = find_name_problem(options.name))
        return Error{Errc::invalid_argument, EINVAL,
                     fmt::format("name '{}': {}; {}", options.name, problem->what, problem->advice)};
    if (options.size_pages > max_size_bytes / host_shm_page_bytes ||
        (options.may_create && options.size_pages == 0))
        return Error{
            Errc::out_of_range, ERANGE,
            fmt::format("share '{}': {} pages of {} bytes; 1 to {} can be made", options.name,
                        options.size_pages, host_shm_page_bytes, max_size_bytes / host_shm_page_bytes)};
    return {};
}

}  // namespace

GuestShmStatus guest_shm_status_of(const Error& error) {
    switch (error.os_error()) {
        case ENOMEM: return GuestShmStatus::nomem;
        case EBUSY: return GuestShmStatus::client_max;
        case EINVAL: return GuestShmStatus::illegal_name;
        case EACCES: return GuestShmStatus::no_permission;
        case ENOENT: return GuestShmStatus::does_not_exist;
        default: return GuestShmStatus::unknown_failure;
    }
}

Result<HostShm> HostShm::create(std::size_t private_bytes) { return HostShm{private_bytes}; }

Result<void> HostShm::attach(const HostShmOptions& options) {
    if (session_)
        return Error{Errc::already_exists, EEXIST,
                     fmt::format("attached to share '{}': detach first", name())};
    GM_TRY(check_options(options));
    auto session = Session::attach({.control = options.control,
                                    .share = options.name,
                                    .may_create = options.may_create,
                                    .size_bytes = options.size_pages * host_shm_page_bytes,
                                    .vectors = 1,
                                    .slots = max_senders,
                                    .timeout_ms = options.timeout_ms,
                                    .ring = options.ring,
                                    .hears_senders = true});
    if (!session) return documented(session.error());
    if (!session->facts().may_notify)
        return Error{
            Errc::permission_denied, EACCES,
            fmt::format("share '{}': this program may not notify, as these operations do", options.name)};
    if (session->senders() == nullptr)
        return Error{
            Errc::unsupported, ENOTSUP,
            fmt::format("share '{}' has {} slots: who poked is known with at most {}; give it 'slots = {}'",
                        options.name, session->facts().slots, max_senders, max_senders)};
    auto memory = session->map();
    if (!memory) return documented(memory.error());
    // Whoever poked an earlier holder of this slot did not mean this one.
    (void)session->take_senders();
    memory_ = std::move(*memory);
    memory_generation_ = session->memory_generation();
    session_ = std::move(*session);
    last_active_ = active_bits();
    return {};
}

void HostShm::detach() {
    session_.reset();
    memory_ = Mapping{};
}

Result<void> HostShm::poke(std::uint32_t bits) {
    if (!session_) return not_attached();
    SenderPages* const senders = session_->senders();
    if (senders == nullptr) return without_pokes(name());
    Result<void> status;
    for (std::uint32_t other = 0; other < session_->facts().slots; ++other) {
        const bool is_me = other == session_->id();
        const bool is_meant = (bits >> other & 1) != 0 && !(is_me && bits == host_shm_poke_all_but_me);
        if (!is_meant || !(is_me || session_->is_present(other))) continue;
        senders->own().add(other);
        // One whose doorbell fails keeps nobody else from being poked.
        if (auto rung = session_->ring(other, 0); !rung && status) status = documented(rung.error());
    }
    return status;
}

std::uint32_t HostShm::active_bits() const {
    std::uint32_t bits = std::uint32_t{1} << session_->id();
    for (const std::uint32_t peer : session_->peers()) bits |= std::uint32_t{1} << (peer % max_senders);
    return bits << 16;
}

Result<std::uint32_t> HostShm::status() {
    if (!session_) return not_attached();
    // The doorbell before the counters: who pokes in between is seen here, or by the next look.
    if (auto woken = session_->wait({.timeout_ms = 0}); !woken) return documented(woken.error());
    if (auto changes = session_->refresh(); !changes) return documented(changes.error());
    SenderPages* const senders = session_->senders();
    if (senders == nullptr) return without_pokes(name());
    last_active_ = active_bits();
    return last_active_ | static_cast<std::uint32_t>(session_->take_senders().to_ulong());
}

Result<std::uint32_t> HostShm::wait_status(int timeout_ms) {
    if (!session_) return not_attached();
    const Deadline deadline{timeout_ms < 0 ? std::chrono::milliseconds{Deadline::farthest}
                                           : std::chrono::milliseconds{timeout_ms}};
    for (;;) {
        const std::uint32_t before = last_active_;
        const std::uint32_t found = GM_TRY(status());
        if (found != before) return found;
        if (deadline.has_passed()) return std::uint32_t{0};
        // While the service is away nothing wakes, and status() looks for it.
        const auto most = std::chrono::milliseconds{session_->is_lost() ? min_retry_ms : 1'000'000'000};
        const auto patience = std::min(deadline.left(), most);
        if (auto ready = poll_readable(view(), static_cast<int>(patience.count())); !ready)
            return documented(ready.error());
    }
}

std::optional<std::uint32_t> HostShm::index() const {
    return session_ ? std::optional{session_->id()} : std::nullopt;
}

Result<Fd> HostShm::duplicate_bell() const {
    if (!session_) return not_attached();
    return session_->duplicate_vector(0);
}

bool HostShm::has_other_memory() const {
    return session_ && session_->memory_generation() != memory_generation_;
}

Result<void> HostShm::renew() {
    if (!session_) return not_attached();
    auto memory = session_->map();
    if (!memory) return documented(memory.error());
    memory_ = std::move(*memory);
    memory_generation_ = session_->memory_generation();
    return {};
}

}  // namespace guestmem::share
