// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/address.hpp"
#include "guestmem/mem/backends/discard.hpp"
#include "guestmem/mem/backends/mode.hpp"
#include "guestmem/mem/backends/options.hpp"
#include "guestmem/mem/backends/plan.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/region.hpp"

/// Guest memory made as its options say: anonymous, a memory object, a file, huge pages, physical.
///
/// Concepts: a backend is made by its plan, owns the bytes (HostMemory), and puts them at guest addresses as regions.
/// Contract: what the plan refuses is not begun, and the error has all refusals. A file that is not the one that was
/// planned with, or has got content since, is an error (unavailable) and left alone. When a later step fails, a file
/// that was made is removed, one that was grown is empty again, and nothing stays mapped. ROM is mapped read-only:
/// neither the guest nor this program can write it. With discard-data the file's part is punched when the last owner of
/// the bytes goes, and only of a backend that could be made.
/// Threads: create() any; a Backend is immutable.
/// Lifetime: regions keep the bytes; the Backend may go before them.
/// Example:
///     const auto backend = GM_TRY(Backend::create(GM_TRY(parse_backend("memory-backend-ram,id=ram0,size=1G"))));
///     layout.add(GM_TRY(backend->make_region(GuestAddress{0})));

namespace guestmem {

/// What became of the file under a mapping.
enum class BackendHealth : std::uint8_t {
    good,
    cut_short,  ///< accesses behind the file's end are errors (AccessReason::fault)
    replaced,   ///< the name leads to another file, or to none; what is mapped is the old one
};

class Backend {
public:
    [[nodiscard]] static Result<std::shared_ptr<const Backend>> create(const BackendOptions& options);
    /// By a plan of just now. With prealloc=on `progress` hears how far it is.
    using Progress = std::function<void(std::uint64_t done_bytes)>;
    [[nodiscard]] static Result<std::shared_ptr<const Backend>> create(const BackendPlan& plan,
                                                                       const Progress& progress = {});

    [[nodiscard]] const BackendOptions& options() const { return options_; }
    [[nodiscard]] const BackendMode& mode() const { return mode_; }
    [[nodiscard]] std::uint64_t page_bytes() const { return page_bytes_; }
    [[nodiscard]] const std::shared_ptr<const HostMemory>& memory() const { return memory_; }

    /// All of it at a guest address, as RAM or ROM, by the name of its id.
    [[nodiscard]] Result<std::shared_ptr<const Region>> make_region(GuestAddress base) const;

    [[nodiscard]] Result<BackendHealth> health() const;
    /// Whether mem-path leads to a file that was not there before.
    [[nodiscard]] bool has_made_file() const { return has_made_file_; }

    /// What discard() does; whether it suits a use, check_discard() says of the plan.
    [[nodiscard]] const DiscardRule& discard_rule() const { return row_of(backing_); }
    /// Gives whole pages of page_bytes() back, by offset. What the rule refuses is an error (unsupported).
    [[nodiscard]] Result<void> discard(std::uint64_t offset_bytes, std::uint64_t size_bytes) const;

private:
    Backend() = default;

    BackendOptions options_;
    BackendMode mode_;
    Backing backing_ = Backing::anonymous;
    std::uint64_t page_bytes_ = 0;
    std::shared_ptr<const HostMemory> memory_;
    std::string path_;  ///< of the file, absolute
    bool has_made_file_ = false;
    bool has_name_ = false;  ///< mem-path leads to the file that is mapped
    bool has_size_ = true;   ///< the file says how long it is; a device does not
};

/// All refusals of a plan as one error.
[[nodiscard]] Error refusal_of(const BackendPlan& plan);

}  // namespace guestmem
