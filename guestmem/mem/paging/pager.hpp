// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/paging/page_source.hpp"

/// Memory that is there at once and gets its pages later: when they are touched, and ahead of it.
///
/// Concepts: each region is anonymous memory that shows a piece of an image. Who touches a page that has not come
/// waits, and the pager's thread fetches it with its neighbors. When nobody waits it fetches ahead: the pages of a
/// working set that was recorded before, in its order, then everything if that is asked for. A page is settled when the
/// source has nothing more to say about it: it was given, it is zeros, or the guest gave it back (MADV_DONTNEED). A
/// settled page that is missing is zeros.
/// Contract: a page shows what the image has, until it is written; once it was removed it is zeros and never the
/// image's bytes again. Faults go first: between two pieces of fetching ahead, those that wait are answered. Regions of
/// which all pages are settled are watched no more and cost nothing from then on. While touches are recorded, a fault
/// brings its own page alone, so that each first touch is seen; so does a fault of a page that is to be fetched ahead.
/// A source that fails, gives no page that it said it had given, or gives what is not in the image fails the pager for
/// good: health() is that error with the place in the image, on_failure is called once, behind the answers to those who
/// waited, and a page that has not come is a fault for whoever touches it: SIGBUS, or SIGSEGV where the kernel cannot
/// poison pages. Guarded accesses turn both into values. Pages that are there stay usable. Nobody waits for longer than
/// the source's own limit; a page that is to come by itself, from a source that pushes, has `patience` for it, and
/// nobody else waits meanwhile. A page of the image that something else populated before it was given is a failure,
/// too. Who waits for a page that is unmapped gets what the kernel has for him.
/// Threads: the pager has one, which alone uses the source. All functions any; on_failure is called on the pager's
/// thread, which answers nobody meanwhile: it must not touch the memory, nor drop the last holder of the pager. Who
/// removes pages waits until the thread hears of it.
/// Lifetime: memory() holds the pager, so nobody can wait for a page when it goes. The destructor waits for the thread,
/// which may have to wait for the source. A child of fork(2) has a hole there, and can do one thing with its pager:
/// drop it, which leaves the parent's alone and frees nothing, descriptors neither, until the child ends.
/// Limits: a storm of removals delays answers: pages can be given between two of them only, which is a few
/// microseconds. Touches amid one took 0.1 to 60 ms on average and half a second at worst, on a single CPU 200 ms and
/// 2 s. It is no failure as long as removals are heard; one that is not heard of for `patience` is. max_pager_regions;
/// faults of KVM need what UserFaultFd names. Memory is private, in pages of 4 KiB.
/// Cost: a fault of one page 20 to 70 us, which 64 KiB at a time divide by 16; 1 bit for each page, 16 bytes
/// for each page to fetch ahead.
/// Example:
///     auto pager = GM_TRY(Pager::start({.source = source, .regions = {{.size_bytes = source->size_bytes()}}}));
///     auto memory = GM_TRY(pager->memory(0));
/// Known holes: pages that came along unasked while touches are recorded are dropped where the source can be asked
/// again; behind one that pushes they stay, and their first touch is not recorded. Zeros that come while everything is
/// fetched are not mapped: until the region is full, their first touch is a fault that is answered without the source.
/// Where the kernel cannot poison pages, one that was lost stays a fault when it is removed. Under mlockall(2) the
/// kernel populates each region when it is made; that is given back, and the memory is not locked.

namespace guestmem {

inline constexpr std::size_t max_pager_regions = 1024;

struct PagerOptions {
    std::shared_ptr<PageSource> source = nullptr;
    /// Pieces of the image, in whole pages, that do not overlap.
    std::vector<ImagePart> regions = {};
    std::uint64_t fetch_bytes = 65536;  ///< around a fault
    /// At once, ahead: what a fault may have to wait for. Filling goes up to 4 MiB while only zeros come.
    std::uint64_t ahead_bytes = 262144;
    std::vector<std::uint64_t> ahead = {};     ///< page numbers of the image, the first ones first
    bool is_filled = false;                    ///< fetch everything
    bool is_recorded = false;                  ///< with neither of the two above
    std::chrono::milliseconds patience{5000};  ///< more than nothing
    std::function<void(const Error&)> on_failure = nullptr;
    bool user_faults_only = false;  ///< as UserFaultFd
    bool may_poison = true;         ///< false: do as on kernels before 6.6
};

struct PagerCounters {
    std::uint64_t faults = 0;          ///< touches that waited and were answered
    std::uint64_t pages_by_fault = 0;  ///< that came because of them, with their neighbors
    std::uint64_t pages_ahead = 0;     ///< that came otherwise
    std::uint64_t zero_pages = 0;      ///< of all these: zeros, mapped or not
    std::uint64_t copied_bytes = 0;
    std::uint64_t removed_pages = 0;             ///< that had not come when they were removed
    std::uint64_t lost_pages = 0;                ///< that are faults because they cannot be had
    std::chrono::nanoseconds longest_answer{0};  ///< from when the pager heard of a touch
};

class PagerWork;

class Pager : public std::enable_shared_from_this<Pager> {
    struct Key {};

public:
    [[nodiscard]] static Result<std::shared_ptr<Pager>> start(PagerOptions options);
    Pager(Key key, std::unique_ptr<PagerWork> work);
    Pager(const Pager&) = delete;
    Pager& operator=(const Pager&) = delete;
    ~Pager();

    [[nodiscard]] std::size_t count_regions() const;
    /// The bytes of options.regions[index], which hold the pager.
    [[nodiscard]] Result<std::shared_ptr<const HostMemory>> memory(std::size_t index) const;

    /// The first failure.
    [[nodiscard]] Result<void> health() const;
    [[nodiscard]] PagerCounters counters() const;
    /// Whether all pages are settled.
    [[nodiscard]] bool is_filled() const;
    /// Waits for that: an error when the pager fails, or the time passes (timed_out).
    [[nodiscard]] Result<void> wait_until_filled(std::chrono::milliseconds timeout) const;
    /// With is_recorded: page numbers of the image in the order of their first touch, so far.
    [[nodiscard]] std::vector<std::uint64_t> recorded() const;

private:
    std::unique_ptr<PagerWork> work_;
};

}  // namespace guestmem
