// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/written_pages.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <string>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

// What the headers of 6.1 do not have: PAGEMAP_SCAN of linux/fs.h, and two features of linux/userfaultfd.h.
struct PageRegion {
    std::uint64_t first;
    std::uint64_t behind;
    std::uint64_t categories;
};
struct ScanRequest {
    std::uint64_t size;
    std::uint64_t flags;
    std::uint64_t start;
    std::uint64_t behind;
    std::uint64_t walked_to;  ///< out
    std::uint64_t vec;
    std::uint64_t vec_len;
    std::uint64_t max_pages;
    std::uint64_t category_inverted;
    std::uint64_t category_mask;
    std::uint64_t category_anyof_mask;
    std::uint64_t return_mask;
};
static_assert(sizeof(ScanRequest) == 96 && sizeof(PageRegion) == 24);
constexpr unsigned long pagemap_scan = _IOWR('f', 16, ScanRequest);
constexpr std::uint64_t page_is_written = 1U << 1U;
constexpr std::uint64_t page_is_file = 1U << 2U;
constexpr std::uint64_t page_is_present = 1U << 3U;
constexpr std::uint64_t page_is_swapped = 1U << 4U;
constexpr std::uint64_t page_is_pfnzero = 1U << 5U;
constexpr std::uint64_t scan_wp_matching = 1U << 0U;
constexpr std::uint64_t scan_check_wpasync = 1U << 1U;
constexpr std::uint64_t feature_wp_unpopulated = std::uint64_t{1} << 13U;
constexpr std::uint64_t feature_wp_async = std::uint64_t{1} << 15U;

// The bits of an entry of /proc/PID/pagemap.
constexpr std::uint64_t entry_is_present = std::uint64_t{1} << 63U;
constexpr std::uint64_t entry_is_swapped = std::uint64_t{1} << 62U;
constexpr std::uint64_t entry_is_file = std::uint64_t{1} << 61U;

/// Regions and entries that one call gives.
constexpr std::size_t regions_at_once = 512;
constexpr std::size_t entries_at_once = 4096;

constexpr const char* pagemap_path = "/proc/self/pagemap";

std::uint64_t page_bytes() { return static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)); }
std::uint64_t address_of(std::span<const std::byte> bytes) {
    return reinterpret_cast<std::uintptr_t>(bytes.data());
}

/// Makes one run of neighbors, and tells of it when it is over.
class Runs {
public:
    explicit Runs(const ExtentVisitor& visit) : visit_(visit) {}

    Result<void> add(FileExtent run) {
        if (open_ && open_->offset_bytes + open_->size_bytes == run.offset_bytes) {
            open_->size_bytes += run.size_bytes;
            return {};
        }
        GM_TRY(finish());
        open_ = run;
        return {};
    }
    Result<void> finish() {
        if (!open_) return {};
        const FileExtent run = *open_;
        open_.reset();
        return visit_(run);
    }

private:
    const ExtentVisitor& visit_;
    std::optional<FileExtent> open_;
};

struct Look {
    std::uint64_t first = 0;  ///< addresses, of whole pages
    std::uint64_t size_bytes = 0;
    std::string what;
};

Result<Look> look_at(std::span<const std::byte> bytes) {
    const std::uint64_t page = page_bytes();
    const std::string what =
        fmt::format("look for written pages in {} bytes at {}", bytes.size(), fmt::ptr(bytes.data()));
    if (address_of(bytes) % page != 0)
        return Error{Errc::invalid_argument, fmt::format("{}: begins within a page of {}", what, page)};
    return Look{
        .first = address_of(bytes), .size_bytes = (bytes.size() + page - 1) / page * page, .what = what};
}

/// False: this kernel has no such request.
Result<bool> scan(FdView pagemap, const Look& look, std::uint64_t flags, Runs& runs) {
    std::array<PageRegion, regions_at_once> regions{};
    ScanRequest request{};
    request.size = sizeof request;
    request.flags = flags;
    request.behind = look.first + look.size_bytes;
    request.vec = reinterpret_cast<std::uintptr_t>(regions.data());
    request.vec_len = regions.size();
    request.category_inverted = page_is_file | page_is_pfnzero;
    request.category_mask = page_is_file | page_is_pfnzero | (flags != 0 ? page_is_written : 0);
    request.category_anyof_mask = page_is_present | page_is_swapped;
    request.return_mask = page_is_present | page_is_swapped;
    for (std::uint64_t at = look.first; at < request.behind;) {
        request.start = at;
        request.walked_to = 0;
        const int count =
            checked_call(SysCall::ioctl, [&] { return ::ioctl(pagemap.number(), pagemap_scan, &request); });
        if (count < 0 && errno == ENOTTY) return false;
        if (count < 0) return Error::from_errno(errno, look.what);
        for (const PageRegion& region : std::span{regions}.first(static_cast<std::size_t>(count)))
            GM_TRY(runs.add(
                {.offset_bytes = region.first - look.first, .size_bytes = region.behind - region.first}));
        if (request.walked_to <= at)
            return Error{Errc::io, fmt::format("{}: the kernel does not come past {:#x}", look.what, at)};
        at = request.walked_to;
    }
    return true;
}

Result<void> read_entries(FdView pagemap, const Look& look, Runs& runs) {
    const std::uint64_t page = page_bytes();
    std::vector<std::uint64_t> entries(
        static_cast<std::size_t>(std::min<std::uint64_t>(look.size_bytes / page, entries_at_once)));
    for (std::uint64_t at = 0; at < look.size_bytes;) {
        const std::size_t count =
            static_cast<std::size_t>(std::min<std::uint64_t>((look.size_bytes - at) / page, entries.size()));
        const auto block = std::span{entries}.first(count);
        GM_TRY_CONTEXT(
            read_at(pagemap, (look.first + at) / page * sizeof(std::uint64_t), std::as_writable_bytes(block)),
            look.what);
        for (const std::uint64_t entry : block) {
            if ((entry & (entry_is_present | entry_is_swapped)) != 0 && (entry & entry_is_file) == 0)
                GM_TRY(runs.add({.offset_bytes = at, .size_bytes = page}));
            at += page;
        }
    }
    return {};
}

template <typename Walk>
Result<std::vector<FileExtent>> collect(Walk&& walk) {
    std::vector<FileExtent> runs;
    GM_TRY(walk([&](FileExtent run) -> Result<void> {
        runs.push_back(run);
        return {};
    }));
    return runs;
}

}  // namespace

Result<void> written_pages(std::span<const std::byte> bytes, const ExtentVisitor& visit,
                           const WrittenPagesOptions& options) {
    const Look look = GM_TRY(look_at(bytes));
    if (look.size_bytes == 0) return {};
    const Fd pagemap = GM_TRY_CONTEXT(open_file(pagemap_path, OpenMode::read), look.what);
    Runs runs{visit};
    const bool is_scanned = options.may_scan && GM_TRY(scan(pagemap, look, 0, runs));
    if (!is_scanned) GM_TRY(read_entries(pagemap, look, runs));
    return runs.finish();
}

Result<std::vector<FileExtent>> written_pages(std::span<const std::byte> bytes,
                                              const WrittenPagesOptions& options) {
    return collect([&](const ExtentVisitor& visit) { return written_pages(bytes, visit, options); });
}

/// What several watches have in common.
struct WriteWatch::Shared {
    Fd faults;
    ::pid_t owner = 0;  ///< whose memory the descriptor is for
};

namespace {

std::string watch_text(std::span<std::byte> bytes) {
    return fmt::format("watch for writes to {} bytes at {}", bytes.size(), fmt::ptr(bytes.data()));
}

int ask(FdView fd, unsigned long request, void* argument) {
    return checked_call(SysCall::ioctl, [&] { return ::ioctl(fd.number(), request, argument); });
}

Result<Fd> open_for_watching() {
    constexpr std::string_view what = "watch for writes";
    // Nobody waits for an answer here, so what an ordinary user may have is enough.
    Fd fd{static_cast<int>(checked_call(SysCall::userfaultfd, [&] {
        return ::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    }))};
    if (!fd.is_open()) return Error::from_errno(errno, fmt::format("{}: userfaultfd", what));
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = feature_wp_unpopulated | feature_wp_async;
    if (ask(fd, UFFDIO_API, &api) == 0) return fd;
    if (errno != EINVAL) return Error::from_errno(errno, std::string{what});
    return Error{Errc::unsupported, EINVAL,
                 fmt::format("{}: this kernel cannot, Linux 6.7 and later can; use written_pages(), which "
                             "tells all pages written since the memory was mapped",
                             what)};
}

}  // namespace

Result<WriteWatch> WriteWatch::arm(std::span<std::byte> bytes) {
    if (bytes.empty()) return WriteWatch{};
    GM_TRY(look_at(bytes));
    const WriteWatcher watcher = GM_TRY_CONTEXT(WriteWatcher::create(), watch_text(bytes));
    return watcher.arm(bytes);
}

Result<WriteWatcher> WriteWatcher::create() {
    Fd fd = GM_TRY(open_for_watching());
    return WriteWatcher{std::make_shared<const WriteWatch::Shared>(std::move(fd), ::getpid())};
}

bool WriteWatcher::is_of_this_process() const { return shared_->owner == ::getpid(); }

Result<WriteWatch> WriteWatcher::arm(std::span<std::byte> bytes) const {
    if (bytes.empty()) return WriteWatch{};
    if (!is_of_this_process())
        return Error{
            Errc::invalid_argument,
            fmt::format("{}: the watcher is that of process {}, whose memory it watches; create a new one",
                        watch_text(bytes), shared_->owner)};
    const Look look = GM_TRY(look_at(bytes));
    // This marks nothing: a page without a mark is in the first answer once it is a copy of our own, and only those
    // that were in an answer get one.
    uffdio_register request{};
    request.range = {.start = look.first, .len = look.size_bytes};
    request.mode = UFFDIO_REGISTER_MODE_WP;
    if (ask(shared_->faults, UFFDIO_REGISTER, &request) < 0)
        return Error::from_errno(errno, watch_text(bytes));
    return WriteWatch{shared_, bytes};
}

WriteWatch::~WriteWatch() {
    // The last one ends all watching with the descriptor. A child of fork(2) has no memory that it could let go of.
    if (!shared_ || shared_.use_count() == 1 || shared_->owner != ::getpid()) return;
    const auto look = look_at(bytes_);
    uffdio_range range{.start = look->first, .len = look->size_bytes};
    ::ioctl(shared_->faults.view().number(), UFFDIO_UNREGISTER, &range);
}

Result<void> WriteWatch::take_written(const ExtentVisitor& visit) {
    if (bytes_.empty()) return {};
    const Look look = GM_TRY(look_at(bytes_));
    const Fd pagemap = GM_TRY_CONTEXT(open_file(pagemap_path, OpenMode::read), look.what);
    Runs runs{visit};
    if (!GM_TRY(scan(pagemap, look, scan_wp_matching | scan_check_wpasync, runs)))
        return Error{Errc::unsupported, ENOTTY,
                     fmt::format("{}: this kernel has no PAGEMAP_SCAN", look.what)};
    return runs.finish();
}

Result<std::vector<FileExtent>> WriteWatch::take_written() {
    return collect([&](const ExtentVisitor& visit) { return take_written(visit); });
}

}  // namespace guestmem
