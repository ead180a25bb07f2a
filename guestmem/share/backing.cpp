// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/backing.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/huge_pages.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/memory_file.hpp"

namespace guestmem::share {
namespace {

std::string describe(const BackingOptions& options) {
    if (options.kind == BackingKind::memfd) return fmt::format("memory '{}'", options.name);
    return fmt::format("{} {}", to_string(options.kind), options.path);
}

Result<void> check_options(const BackingOptions& options) {
    if (options.size_bytes == 0 || options.size_bytes % page_size_bytes != 0 ||
        options.size_bytes > (std::uint64_t{1} << 62))
        return Error{Errc::invalid_argument,
                     fmt::format("{}: {} bytes are not whole pages of {}", describe(options),
                                 options.size_bytes, page_size_bytes)};
    if (options.kind != BackingKind::memfd && options.huge_page_bytes != 0)
        return Error{Errc::invalid_argument,
                     fmt::format("{}: huge pages need the backing 'memfd'", describe(options))};
    if (options.kind == BackingKind::file && !options.path.starts_with('/'))
        return Error{Errc::invalid_argument, fmt::format("{}: the path is not absolute", describe(options))};
    return {};
}

/// Where a file or shm object is.
Result<std::string> path_of(const BackingOptions& options) {
    if (options.kind == BackingKind::shm) return shm_path(options.path);
    return options.path;
}

Result<MemoryFile> make_memory(const BackingOptions& options) {
    if (options.kind == BackingKind::memfd) {
        Fd memory = GM_TRY(create_sparse_memory({.name = options.name,
                                                 .size_bytes = options.size_bytes,
                                                 .huge_page_bytes = options.huge_page_bytes},
                                                Sealing::size));
        return MemoryFile{.fd = std::move(memory), .was_there = false};
    }
    const std::string path = GM_TRY(path_of(options));
    const std::string folder = parent_folder(path);
    if (!is_folder(folder))
        return Error{Errc::not_found,
                     fmt::format("{}: there is no folder {}: make it", describe(options), folder)};
    return open_memory_file(path, options.size_bytes);
}

/// An error where the descriptor is not what create() with these options makes.
Result<void> check_kind(FdView memory, const BackingOptions& options) {
    const FileFacts facts = GM_TRY(file_facts(memory));
    if (!facts.is_regular || !facts.is_writable)
        return Error{Errc::corrupt, "the descriptor is no file that is open for reading and writing"};
    if (facts.size_bytes != options.size_bytes)
        return Error{Errc::corrupt, fmt::format("the descriptor has {} bytes, not {}", facts.size_bytes,
                                                options.size_bytes)};
    if (GM_TRY(is_size_sealed(memory)) != (options.kind == BackingKind::memfd))
        return Error{Errc::corrupt,
                     fmt::format("the descriptor is not of the backing '{}'", to_string(options.kind))};
    const FileSystemFacts system = GM_TRY(file_system_facts(memory));
    if ((system.is_huge ? system.page_bytes : 0) != options.huge_page_bytes)
        return Error{Errc::corrupt,
                     fmt::format("the descriptor has pages of {}, not of {}", format_size(system.page_bytes),
                                 options.huge_page_bytes == 0 ? std::string{"the usual size"}
                                                              : format_size(options.huge_page_bytes))};
    return {};
}

/// What all backings of the process will still take, by pool.
class Ledger {
public:
    void add(std::uint64_t pool, std::uint64_t size_bytes) {
        const std::scoped_lock lock{mutex_};
        promised_[pool] += size_bytes;
    }
    void take(std::uint64_t pool, std::uint64_t size_bytes) {
        const std::scoped_lock lock{mutex_};
        const auto found = promised_.find(pool);
        if (found == promised_.end()) return;
        found->second -= std::min(found->second, size_bytes);
    }
    [[nodiscard]] std::uint64_t promised(std::uint64_t pool) {
        const std::scoped_lock lock{mutex_};
        const auto found = promised_.find(pool);
        return found == promised_.end() ? 0 : found->second;
    }

private:
    std::mutex mutex_;
    std::map<std::uint64_t, std::uint64_t> promised_;
};

Ledger& ledger() {
    static Ledger only;
    return only;
}

}  // namespace

std::string_view to_string(BackingKind kind) {
    switch (kind) {
        case BackingKind::memfd: return "memfd";
        case BackingKind::file: return "file";
        case BackingKind::shm: return "shm";
    }
    return "unknown";
}

MemoryPromise::MemoryPromise(std::uint64_t pool, std::uint64_t size_bytes)
    : pool_(pool), size_bytes_(size_bytes) {
    ledger().add(pool, size_bytes);
}

MemoryPromise::MemoryPromise(MemoryPromise&& other) noexcept
    : pool_(other.pool_), size_bytes_(std::exchange(other.size_bytes_, 0)) {}

MemoryPromise& MemoryPromise::operator=(MemoryPromise&& other) noexcept {
    if (this != &other) {
        shrink_to(0);
        pool_ = other.pool_;
        size_bytes_ = std::exchange(other.size_bytes_, 0);
    }
    return *this;
}

MemoryPromise::~MemoryPromise() { shrink_to(0); }

void MemoryPromise::shrink_to(std::uint64_t size_bytes) {
    if (size_bytes >= size_bytes_) return;
    ledger().take(pool_, size_bytes_ - size_bytes);
    size_bytes_ = size_bytes;
}

std::uint64_t promised_bytes(std::uint64_t pool) { return ledger().promised(pool); }

std::string Backing::what() const { return describe(options_); }

/// Only memory counts its pages exactly; a disk's blocks include the file system's own.
Result<void> Backing::look_for_pages() {
    const FileSystemFacts system = GM_TRY_CONTEXT(file_system_facts(memory_), what());
    const FileFacts facts = GM_TRY_CONTEXT(file_facts(memory_), what());
    if (system.is_memory && facts.allocated_bytes >= options_.size_bytes) next_bytes_ = options_.size_bytes;
    return {};
}

Result<void> Backing::promise() {
    const std::uint64_t missing = GM_TRY(missing_memory());
    promise_ = MemoryPromise{options_.huge_page_bytes, missing};
    return {};
}

/// Bytes that its steps will take of memory or of a pool of huge pages; none for what is on a disk.
Result<std::uint64_t> Backing::missing_memory() const {
    const FileFacts facts = GM_TRY_CONTEXT(file_facts(memory_), what());
    const FileSystemFacts system = GM_TRY_CONTEXT(file_system_facts(memory_), what());
    if (!system.is_memory || is_complete()) return std::uint64_t{0};
    return options_.size_bytes - std::min(options_.size_bytes, facts.allocated_bytes);
}

/// Of the pool that it takes its pages from.
Result<std::uint64_t> Backing::available_bytes() const {
    if (options_.huge_page_bytes == 0) return available_memory_bytes();
    const std::vector<HugePagePool> pools = GM_TRY(huge_page_pools());
    for (const HugePagePool& pool : pools)
        if (pool.page_bytes == options_.huge_page_bytes) return pool.available_pages() * pool.page_bytes;
    return std::uint64_t{0};
}

Result<void> Backing::check_room() const {
    const FileFacts facts = GM_TRY_CONTEXT(file_facts(memory_), what());
    const std::uint64_t missing = options_.size_bytes - std::min(options_.size_bytes, facts.allocated_bytes);
    const FileSystemFacts system = GM_TRY_CONTEXT(file_system_facts(memory_), what());
    // A memfd is on the kernel's own mount, which has no limit.
    if (options_.kind != BackingKind::memfd && system.free_bytes && missing > *system.free_bytes)
        return Error{Errc::exhausted,
                     fmt::format("{}: it needs {} bytes more, and its file system ({}) has {} free; make it "
                                 "smaller or free some",
                                 what(), missing, system.type, *system.free_bytes)};
    if (!system.is_memory) return {};
    const std::uint64_t available = GM_TRY_CONTEXT(available_bytes(), what());
    const std::uint64_t promised = promised_bytes(options_.huge_page_bytes);
    if (promised <= available && missing <= available - promised) return {};
    return Error{
        Errc::exhausted,
        fmt::format("{}: it needs {} bytes more, and the host has {} available{}, of which {} are promised "
                    "to others; make it smaller or free memory",
                    what(), missing, available,
                    options_.huge_page_bytes == 0
                        ? std::string{}
                        : fmt::format(" in huge pages of {}", format_size(options_.huge_page_bytes)),
                    promised)};
}

Result<Backing> Backing::create(const BackingOptions& options) {
    GM_TRY(check_options(options));
    MemoryFile made = GM_TRY(make_memory(options));
    Backing backing{std::move(made.fd), options};
    backing.has_kept_bytes_ = made.was_there;
    auto checked = backing.check_room();
    if (checked) checked = backing.look_for_pages();
    if (checked) checked = backing.promise();
    if (checked) return backing;
    if (options.kind != BackingKind::memfd && !made.was_there)
        if (const auto path = path_of(options)) remove_name_of(*path, backing.memory_);
    return std::move(checked).error();
}

Result<Backing> Backing::adopt(Fd memory, const BackingOptions& options) {
    GM_TRY(check_options(options));
    GM_TRY_CONTEXT(check_kind(memory, options), fmt::format("take over {}", describe(options)));
    Backing backing{std::move(memory), options};
    backing.has_kept_bytes_ = true;
    GM_TRY(backing.look_for_pages());
    GM_TRY(backing.promise());
    return backing;
}

Result<bool> Backing::allocate_step() {
    if (is_complete()) return true;
    const std::uint64_t chunk =
        std::min(std::max(backing_chunk_bytes, options_.huge_page_bytes), options_.size_bytes - next_bytes_);
    if (is_clearing_) GM_TRY_CONTEXT(punch_hole(memory_, next_bytes_, chunk), what());
    GM_TRY_CONTEXT(allocate_file(memory_, next_bytes_, chunk), what());
    next_bytes_ += chunk;
    promise_.shrink_to(options_.size_bytes - next_bytes_);
    if (is_complete()) is_clearing_ = false;
    return is_complete();
}

/// Pages that are there are given back and taken again a chunk at a time: nothing more is promised.
void Backing::begin_clear() {
    next_bytes_ = 0;
    has_kept_bytes_ = false;
    is_clearing_ = true;
}

Result<Fd> Backing::read_only() const {
    Fd reader = GM_TRY_CONTEXT(reopen_read_only(memory_), what());
    return reader;
}

void Backing::remove_name() const noexcept {
    if (options_.kind != BackingKind::shm) return;
    if (const auto path = shm_path(options_.path)) remove_name_of(*path, memory_);
}

}  // namespace guestmem::share
