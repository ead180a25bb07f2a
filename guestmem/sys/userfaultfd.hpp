// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// Pages of our own memory that we give when they are touched: the owner of a userfaultfd(2).
///
/// Concepts: memory that is watched has no page until somebody gives it: who touches one sleeps, and a fault can be
/// read here. Who takes pages away (madvise(2) with MADV_DONTNEED or MADV_REMOVE, munmap(2)) sleeps as well, until that
/// has been read here: from then on, and not earlier, the pages are on their way out. Giving pages is refused
/// meanwhile, so that none is given by somebody who has not heard of it.
/// Contract: a page is given once: what is there stays as it is. Reading never waits. The bytes are whole pages of
/// private anonymous memory of this process; other memory is what the kernel makes of it.
/// Threads: any; events go to one reader each. The reader must not touch pages that nobody has given, and whoever
/// removes pages waits for the reader, who therefore is another thread.
/// Lifetime: when it goes, so does the watching: who sleeps wakes up, and pages that nobody gave are zeros. The memory
/// has to be unmapped after it, else munmap(2) waits for a reader.
/// Limits: faults of the kernel itself (KVM, read(2) into such memory) need CAP_SYS_PTRACE, /dev/userfaultfd, or the
/// sysctl vm.unprivileged_userfaultfd; without (user_faults_only) the kernel's own accesses fail with EFAULT. A child
/// of fork(2) has no part in it: it sees zeros, unless the memory is kept from it (Advice::dont_fork).
/// Cost: a touch that has to be answered takes about 20 us; giving a page that nobody waits for less than 1.
/// Example:
///     const UserFaultFd faults = GM_TRY(UserFaultFd::create({}));
///     GM_TRY(faults.watch_missing(memory.bytes()));
///     for (const FaultEvent& event : GM_TRY(faults.read_events())) ...
/// Known holes: mremap(2) of watched memory is not reported. MADV_FREE is not, either: a page that the kernel took
/// after it is a fault again.

namespace guestmem {

struct FaultEvent {
    enum class Kind : std::uint8_t {
        page_missing,   ///< somebody waits for the page at `bytes`
        pages_removed,  ///< `bytes` are zeros from here on
    };
    Kind kind = Kind::page_missing;
    bool is_write = false;            ///< of a fault
    std::span<std::byte> bytes = {};  ///< whole pages; one page for a fault
};

/// How far giving pages came. Less than all without an interruption: an error stopped it there, which the next call,
/// for what is left, meets again.
struct PagesGiven {
    std::uint64_t done_bytes = 0;   ///< from the first on: given, or there before
    std::uint64_t given_bytes = 0;  ///< of these: given by this call
    bool is_interrupted =
        false;  ///< pages are being removed: read the events, then go on behind the done ones
};

class UserFaultFd {
public:
    struct Options {
        bool user_faults_only = false;
    };
    /// How many events one read_events() gives at most.
    static constexpr std::size_t max_events = 32;

    UserFaultFd() = default;
    /// Asks the system call, and /dev/userfaultfd where that is refused.
    [[nodiscard]] static Result<UserFaultFd> create(const Options& options);

    /// Readable when there are events.
    [[nodiscard]] FdView view() const { return fd_.view(); }
    /// Whether this kernel has poison_pages(): 6.6 and later.
    [[nodiscard]] bool can_poison() const { return can_poison_; }

    [[nodiscard]] Result<void> watch_missing(std::span<std::byte> pages) const;
    /// Who waits in these pages wakes up. A page that nobody gave is zeros at its next touch.
    [[nodiscard]] Result<void> unwatch(std::span<std::byte> pages) const;

    /// What has come so far; empty when nothing has.
    [[nodiscard]] Result<std::vector<FaultEvent>> read_events() const;

    /// Gives copies of `from`, whole pages, and wakes who waits for them. Pages that are there are passed over, and
    /// those who wait for one of these are not woken.
    [[nodiscard]] Result<PagesGiven> copy_pages(std::byte* to, std::span<const std::byte> from) const;
    /// Gives zeros.
    [[nodiscard]] Result<PagesGiven> zero_pages(std::span<std::byte> pages) const;
    /// Makes pages that are not there raise SIGBUS when they are touched, for good. Errc::unsupported where the kernel
    /// cannot.
    [[nodiscard]] Result<PagesGiven> poison_pages(std::span<std::byte> pages) const;
    /// Wakes who waits for these pages, to try again.
    [[nodiscard]] Result<void> wake(std::span<std::byte> pages) const;

private:
    UserFaultFd(Fd fd, bool can_poison) : fd_(std::move(fd)), can_poison_(can_poison) {}

    Fd fd_;
    bool can_poison_ = false;
};

}  // namespace guestmem
