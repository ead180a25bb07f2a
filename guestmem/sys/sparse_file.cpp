// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/sparse_file.hpp"

#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/scatter_io.hpp"

namespace guestmem {
namespace {

/// The largest size and offset of a file.
constexpr std::uint64_t max_file_bytes = std::numeric_limits<off_t>::max();

/// What copy_file_range(2) is asked for at once; the kernel itself stops below 2 GiB.
constexpr std::uint64_t max_kernel_copy_bytes = std::uint64_t{1} << 30;

Result<void> check_extent(const std::string& what, FileExtent extent) {
    if (extent.offset_bytes <= max_file_bytes && extent.size_bytes <= max_file_bytes - extent.offset_bytes)
        return {};
    return Error{Errc::out_of_range, EFBIG, fmt::format("{}: files end at {} bytes", what, max_file_bytes)};
}

/// Where the next data, or the next hole, begins at or behind an offset. Nothing: the file ends before.
Result<std::optional<std::uint64_t>> seek(FdView fd, std::uint64_t offset_bytes, int whence,
                                          const std::string& what) {
    const off_t found = checked_call(
        SysCall::lseek, [&] { return ::lseek(fd.number(), static_cast<off_t>(offset_bytes), whence); });
    if (found >= 0) return static_cast<std::uint64_t>(found);
    if (errno == ENXIO) return std::nullopt;
    return Error::from_errno(errno, what);
}

/// The answer where the file system does not know holes (EINVAL).
Result<std::optional<FileExtent>> all_data(FdView fd, FileExtent within, const std::string& what) {
    const FileFacts facts = GM_TRY_CONTEXT(file_facts(fd), what);
    if (!facts.is_regular) return Error{Errc::unsupported, EINVAL, fmt::format("{}: it is no file", what)};
    if (facts.size_bytes <= within.offset_bytes) return std::nullopt;
    const std::uint64_t size_bytes = std::min(within.size_bytes, facts.size_bytes - within.offset_bytes);
    return FileExtent{.offset_bytes = within.offset_bytes, .size_bytes = size_bytes};
}

/// Whether the process may have files of that size: past its limit, some calls are answered by SIGXFSZ.
Result<bool> is_within_limit(std::uint64_t size_bytes, const std::string& what) {
    rlimit limit{};
    if (checked_call(SysCall::getrlimit, [&] { return ::getrlimit(RLIMIT_FSIZE, &limit); }) < 0)
        return Error::from_errno(errno, fmt::format("{}: ask for the limit on file sizes", what));
    return limit.rlim_cur == RLIM_INFINITY || size_bytes <= limit.rlim_cur;
}

/// What kernels and file systems say that cannot copy or clone between these two files.
bool is_cannot(int os_error) {
    constexpr std::array cannot{EXDEV, EINVAL, ENOSYS, EOPNOTSUPP, ENOTTY};
    return std::ranges::find(cannot, os_error) != cannot.end();
}

/// The pieces of a copy; advance() takes what is done from their fronts.
struct CopyRange {
    FdView from;
    std::uint64_t from_offset_bytes;
    FdView to;
    std::uint64_t to_offset_bytes;
    std::uint64_t size_bytes;

    void advance(std::uint64_t done_bytes) {
        from_offset_bytes += done_bytes;
        to_offset_bytes += done_bytes;
        size_bytes -= done_bytes;
    }
};

/// A forward copy of overlapping pieces would read what it has written, and only copy_file_range(2) refuses them.
Result<void> check_overlap(const CopyRange& range, const std::string& what) {
    const auto [low, high] = std::minmax(range.from_offset_bytes, range.to_offset_bytes);
    if (high - low >= range.size_bytes) return {};
    const FileFacts from = GM_TRY_CONTEXT(file_facts(range.from), what);
    const FileFacts to = GM_TRY_CONTEXT(file_facts(range.to), what);
    if (from.device != to.device || from.inode != to.inode) return {};
    return Error{Errc::invalid_argument, fmt::format("{}: the two pieces of one file overlap", what)};
}

/// Copies until all is done or the kernel cannot: the rest stays in `range`.
Result<void> copy_in_kernel(CopyRange& range, const std::string& what) {
    while (range.size_bytes != 0) {
        auto from_offset = static_cast<off_t>(range.from_offset_bytes);
        auto to_offset = static_cast<off_t>(range.to_offset_bytes);
        const std::size_t wanted = std::min(range.size_bytes, max_kernel_copy_bytes);
        const ssize_t done = checked_call(SysCall::copy_file_range, [&] {
            return ::copy_file_range(range.from.number(), &from_offset, range.to.number(), &to_offset, wanted,
                                     0);
        });
        // Nothing done: the end of the file, or a file without a size. Reading finds out which.
        if (done == 0) return {};
        if (done < 0 && is_cannot(errno)) return {};
        if (done < 0) return Error::from_errno(errno, what);
        range.advance(static_cast<std::uint64_t>(done));
    }
    return {};
}

Result<void> copy_through_memory(CopyRange range) {
    std::vector<std::byte> buffer(std::min<std::uint64_t>(range.size_bytes, copy_buffer_bytes));
    while (range.size_bytes != 0) {
        const std::size_t size = std::min<std::uint64_t>(range.size_bytes, buffer.size());
        const auto piece = std::span{buffer}.first(size);
        GM_TRY(read_at(range.from, range.from_offset_bytes, piece));
        GM_TRY(write_at(range.to, range.to_offset_bytes, piece));
        range.advance(size);
    }
    return {};
}

}  // namespace

Result<std::optional<FileExtent>> next_data(FdView fd, FileExtent within) {
    const std::string what = fmt::format("look for data in {} bytes at {} of descriptor {}",
                                         within.size_bytes, within.offset_bytes, fd.number());
    GM_TRY(check_extent(what, within));
    if (within.size_bytes == 0) return std::nullopt;
    const auto data = seek(fd, within.offset_bytes, SEEK_DATA, what);
    if (!data && data.error().os_error() == EINVAL) return all_data(fd, within, what);
    if (!data) return data.error();
    if (!*data || **data - within.offset_bytes >= within.size_bytes) return std::nullopt;
    // Nothing: the file was cut since, and there is no data left.
    const auto hole = GM_TRY(seek(fd, **data, SEEK_HOLE, what));
    if (!hole) return std::nullopt;
    const std::uint64_t room_bytes = within.size_bytes - (**data - within.offset_bytes);
    return FileExtent{.offset_bytes = **data, .size_bytes = std::min(*hole - **data, room_bytes)};
}

Result<void> read_at(FdView fd, std::uint64_t offset_bytes, std::span<std::byte> bytes) {
    const auto what = [&, size_bytes = bytes.size()] {
        return fmt::format("read {} bytes at {}", size_bytes, offset_bytes);
    };
    std::uint64_t at = offset_bytes;
    while (!bytes.empty()) {
        const std::array piece{IoSlice{.data = bytes.data(), .size_bytes = bytes.size()}};
        const std::size_t done = GM_TRY_CONTEXT(read_scattered(fd, piece, at), what());
        if (done == 0) {
            const FileFacts facts = GM_TRY_CONTEXT(file_facts(fd), what());
            return Error{Errc::corrupt, fmt::format("{}, descriptor {}: the file ends at {}", what(),
                                                    fd.number(), std::min(at, facts.size_bytes))};
        }
        at += done;
        bytes = bytes.subspan(done);
    }
    return {};
}

Result<void> write_at(FdView fd, std::uint64_t offset_bytes, std::span<const std::byte> bytes) {
    const auto what = [&, size_bytes = bytes.size()] {
        return fmt::format("write {} bytes at {}", size_bytes, offset_bytes);
    };
    GM_TRY(check_extent(what(), {.offset_bytes = offset_bytes, .size_bytes = bytes.size()}));
    std::uint64_t at = offset_bytes;
    while (!bytes.empty()) {
        // The call only reads them.
        const std::array piece{
            IoSlice{.data = const_cast<std::byte*>(bytes.data()), .size_bytes = bytes.size()}};
        const std::size_t done = GM_TRY_CONTEXT(write_scattered(fd, piece, at), what());
        if (done == 0)
            return Error{Errc::io,
                         fmt::format("{}, descriptor {}: it takes no more at {}", what(), fd.number(), at)};
        at += done;
        bytes = bytes.subspan(done);
    }
    return {};
}

Result<CopyHow> copy_range(FdView from, std::uint64_t from_offset_bytes, FdView to,
                           std::uint64_t to_offset_bytes, std::uint64_t size_bytes) {
    const std::string what =
        fmt::format("copy {} bytes at {} of descriptor {} to {} of descriptor {}", size_bytes,
                    from_offset_bytes, from.number(), to_offset_bytes, to.number());
    GM_TRY(check_extent(what, {.offset_bytes = from_offset_bytes, .size_bytes = size_bytes}));
    GM_TRY(check_extent(what, {.offset_bytes = to_offset_bytes, .size_bytes = size_bytes}));
    CopyRange range{.from = from,
                    .from_offset_bytes = from_offset_bytes,
                    .to = to,
                    .to_offset_bytes = to_offset_bytes,
                    .size_bytes = size_bytes};
    GM_TRY(check_overlap(range, what));
    // write_at() holds the signal back; copy_file_range(2) is not asked to go there.
    if (GM_TRY(is_within_limit(to_offset_bytes + size_bytes, what))) GM_TRY(copy_in_kernel(range, what));
    if (range.size_bytes == 0) return CopyHow::in_kernel;
    GM_TRY_CONTEXT(copy_through_memory(range), what);
    return CopyHow::through_memory;
}

Result<bool> clone_file(FdView from, FdView to) {
    const std::string what = fmt::format("clone descriptor {} to descriptor {}", from.number(), to.number());
    const FileFacts facts = GM_TRY_CONTEXT(file_facts(from), what);
    if (!GM_TRY(is_within_limit(facts.size_bytes, what))) return false;
    const int status =
        checked_call(SysCall::ioctl, [&] { return ::ioctl(to.number(), FICLONE, from.number()); });
    if (status == 0) return true;
    if (is_cannot(errno)) return false;
    return Error::from_errno(errno, what);
}

}  // namespace guestmem
