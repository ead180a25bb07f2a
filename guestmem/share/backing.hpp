// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// The bytes of a share: where they live, how they come to exist, are cleared, and given out read-only.
///
/// Concepts: memfd, of ordinary or huge pages, sealed so that its size never changes; a file, which outlives the
/// service and the machine's users; a POSIX shm name (/dev/shm/NAME), for host programs that open one. Files and shm
/// names cannot be sealed: whoever may write the file may cut it short.
/// Contract: create() makes it with its full size, mode 0600 and no pages; each allocate_step() allocates a
/// chunk, so that a large one does not hold up whoever serves others meanwhile, and says whether all are there. Only
/// then is a shortage of memory impossible. Memory that the host, its pool of huge pages or the file system has not
/// got is refused before it is tried; what other backings of this process will still take counts as taken. A file or
/// shm object that is there before is taken as open_memory_file() says (ours alone, exactly this size), and its bytes
/// are kept; one that does not fit is an error, and is not touched. After begin_clear() the steps make it zero, chunk
/// by chunk. read_only() is another open file: nobody who has it can map it writable, re-open it writable or pass such
/// a right on, unless it is of the file's owner or has CAP_DAC_OVERRIDE.
/// Lifetime: remove_name() removes the shm name when it still leads to this memory; files stay. What create() made is
/// gone when it fails.
/// Threads: a backing one at a time; they know of each other's promises in whatever thread they are.
/// Limits: chunks of backing_chunk_bytes (or one huge page). A path is absolute, and its folder is there.
/// Cost: a chunk is zeroed as it is allocated, 0.3 ms per MiB of memory. Pages that are there cost nearly nothing;
/// where the file system is memory and all are there, create() and adopt() see it, and no step is left.
/// Known holes: two services that are given one path both take it. Other processes take memory that was there when it
/// was asked for; files on one disk do not know of each other's promises. Who owns the file can cut it short: a mapping
/// of it then raises SIGBUS.

namespace guestmem::share {

inline constexpr std::uint64_t backing_chunk_bytes = 2 * 1024 * 1024;

enum class BackingKind : std::uint8_t { memfd, file, shm };
[[nodiscard]] std::string_view to_string(BackingKind kind);

struct BackingOptions {
    BackingKind kind = BackingKind::memfd;
    std::string name = {};  ///< of the share: shown in /proc/PID/maps
    std::string path = {};  ///< of a file, or the shm name ("/mailbox"); unused for a memfd
    std::uint64_t size_bytes = 0;
    std::uint64_t huge_page_bytes = 0;  ///< memfd only; 0: ordinary pages
};

/// Memory that somebody will take and has not taken yet. It is not there for others, who ask promised_bytes() of the
/// same pool: 0 for ordinary pages, else the size of a huge page.
class MemoryPromise {
public:
    MemoryPromise() = default;
    MemoryPromise(std::uint64_t pool, std::uint64_t size_bytes);
    MemoryPromise(MemoryPromise&& other) noexcept;
    MemoryPromise& operator=(MemoryPromise&& other) noexcept;
    ~MemoryPromise();

    /// No more than this is still to be taken.
    void shrink_to(std::uint64_t size_bytes);

private:
    std::uint64_t pool_ = 0;
    std::uint64_t size_bytes_ = 0;
};
[[nodiscard]] std::uint64_t promised_bytes(std::uint64_t pool);

class Backing {
public:
    [[nodiscard]] static Result<Backing> create(const BackingOptions& options);
    /// One that an earlier instance has made, as its descriptor came back: refused when it is not of this size, or not
    /// of this kind. Whether all pages are there is the caller's knowledge; steps may be repeated.
    [[nodiscard]] static Result<Backing> adopt(Fd memory, const BackingOptions& options);

    /// True once every page is there. Errors (exhausted) leave what is there.
    [[nodiscard]] Result<bool> allocate_step();
    void begin_clear();
    [[nodiscard]] bool is_complete() const { return next_bytes_ >= options_.size_bytes; }
    [[nodiscard]] Result<Fd> read_only() const;
    /// Whether create() found bytes of earlier times, or adopt() took them over; not after begin_clear().
    [[nodiscard]] bool has_kept_bytes() const { return has_kept_bytes_; }
    void remove_name() const noexcept;

    [[nodiscard]] const Fd& memory() const { return memory_; }
    [[nodiscard]] const BackingOptions& options() const { return options_; }

private:
    Backing(Fd memory, BackingOptions options) : memory_(std::move(memory)), options_(std::move(options)) {}
    [[nodiscard]] Result<void> look_for_pages();
    [[nodiscard]] Result<void> promise();
    [[nodiscard]] Result<std::uint64_t> missing_memory() const;
    [[nodiscard]] Result<void> check_room() const;
    [[nodiscard]] Result<std::uint64_t> available_bytes() const;
    [[nodiscard]] std::string what() const;

    Fd memory_;
    BackingOptions options_;
    MemoryPromise promise_;
    std::uint64_t next_bytes_ = 0;  ///< up to there the pages are allocated
    bool has_kept_bytes_ = false;
    bool is_clearing_ = false;
};

}  // namespace guestmem::share
