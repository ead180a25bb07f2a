// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/sparse_file.hpp"

/// Which pages of a private mapping this process wrote: since it was mapped, or since it was asked last.
///
/// Concepts: a page of a private mapping that was written is a copy of our own; one that was only read is the file's.
/// The kernel knows which is which, in memory and in swap, so the first question needs no preparation. Writes between
/// two questions are seen by a WriteWatch: the kernel takes the write permission from the pages that it reports, and
/// marks each one again when it is written next (userfaultfd's write protection, asynchronous mode). Nobody waits for
/// anybody.
/// Contract: runs of whole pages in ascending order, offsets from the first byte of the mapping; neighbors are one run.
/// A page that is written while it is looked at is in this answer or, of a WriteWatch, in the next.
/// Threads: written_pages() any; a WriteWatch one at a time, several any. Those who write are not held.
/// Limits: private mappings of a file, or anonymous memory. The bytes begin at a page; the last one counts whole.
/// A WriteWatch needs Linux 6.7; no privilege.
/// Cost: with PAGEMAP_SCAN (6.7) about 10 us for 1 GiB of which little was written, without 0.7 ms. WriteWatch::arm()
/// adds two thirds to what mapping and unmapping the file costs, however large, WriteWatcher::arm() a
/// quarter; the first write of a page after it was reported is a page fault.
/// Example:
///     GM_TRY(written_pages(fork.bytes(), [&](FileExtent run) { return save(run); }));
/// Known holes: a page that was written and then discarded (MADV_DONTNEED) is no copy any more and in no answer,
/// although a WriteWatch may have reported other bytes for it before: who lets others discard compares with what it
/// discards itself. Of memory that a userfaultfd poisoned the older way of asking says that it was written.

namespace guestmem {

/// Told of each run; its error ends the walk.
using ExtentVisitor = std::function<Result<void>(FileExtent run)>;

struct WrittenPagesOptions {
    bool may_scan = true;  ///< false: read /proc/self/pagemap, as on kernels before 6.7
};

/// Pages that are copies of our own; anonymous ones that were only read do not count with PAGEMAP_SCAN, and may
/// without.
[[nodiscard]] Result<void> written_pages(std::span<const std::byte> bytes, const ExtentVisitor& visit,
                                         const WrittenPagesOptions& options = {});
/// All runs at once: 16 bytes for each.
[[nodiscard]] Result<std::vector<FileExtent>> written_pages(std::span<const std::byte> bytes,
                                                            const WrittenPagesOptions& options = {});

class WriteWatch {
public:
    WriteWatch() = default;
    /// Begins to watch. The bytes stay mapped until it is gone. Errc::unsupported where the kernel cannot.
    [[nodiscard]] static Result<WriteWatch> arm(std::span<std::byte> bytes);
    WriteWatch(WriteWatch&& other) noexcept
        : shared_(std::move(other.shared_)), bytes_(std::exchange(other.bytes_, {})) {}
    WriteWatch& operator=(WriteWatch&& other) noexcept {
        std::swap(shared_, other.shared_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    WriteWatch(const WriteWatch&) = delete;
    WriteWatch& operator=(const WriteWatch&) = delete;
    ~WriteWatch();

    /// Pages written since the last time; the first time, all that are copies of our own, also those that were written
    /// before arm(). After an error some writes may be lost.
    [[nodiscard]] Result<void> take_written(const ExtentVisitor& visit);
    [[nodiscard]] Result<std::vector<FileExtent>> take_written();

private:
    friend class WriteWatcher;
    struct Shared;
    WriteWatch(std::shared_ptr<const Shared> shared, std::span<std::byte> bytes)
        : shared_(std::move(shared)), bytes_(bytes) {}

    std::shared_ptr<const Shared> shared_;
    std::span<std::byte> bytes_;
};

/// Arms many watches with one descriptor: a third of the cost of each.
class WriteWatcher {
public:
    [[nodiscard]] static Result<WriteWatcher> create();
    [[nodiscard]] Result<WriteWatch> arm(std::span<std::byte> bytes) const;
    /// False in a child of fork(2): it watches the memory of its parent, and arm() is an error.
    [[nodiscard]] bool is_of_this_process() const;

private:
    explicit WriteWatcher(std::shared_ptr<const WriteWatch::Shared> shared) : shared_(std::move(shared)) {}

    std::shared_ptr<const WriteWatch::Shared> shared_;
};

}  // namespace guestmem
