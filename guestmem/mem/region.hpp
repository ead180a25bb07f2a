// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/dirty_tracker.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/range.hpp"

/// A region: bytes of the host placed at a guest physical address, or addresses that a device owns.
///
/// Concepts: a region is RAM, memory that must not be written (read-only, or ROM, whose writes a VMM sees as
/// MMIO), or a device's: no bytes, only the answer "this is not memory". Each region has its dirty tracker, off
/// until somebody starts it, and knows by name who holds a raw pointer into it.
/// Contract: immutable but for tracker and holders. Memory that is mapped read-only cannot be RAM.
/// Threads: any.
/// Lifetime: shared. Maps hold regions; the same region may be part of many maps, and its bytes stay mapped until
/// the last of them, and the last pointer guard, is gone.
/// Example (examples/guest_memory.cpp):
///     auto ram = Region::create({.name = "ram", .base = GuestAddress{0}, .memory = memory});
/// Known holes: two regions made from the same bytes have dirty trackers of their own, and a write through one is
/// not in the log of the other; `placed_at` makes a region that shares the tracker.

namespace guestmem {

enum class RegionKind : std::uint8_t { ram, read_only, rom, device };

[[nodiscard]] std::string_view to_string(RegionKind kind);

struct RegionOptions {
    std::string name;  ///< shown in errors and lists
    GuestAddress base;
    std::uint64_t size_bytes = 0;  ///< 0: what the memory has from the offset on; a device has to say it
    RegionKind kind = RegionKind::ram;
    std::shared_ptr<const HostMemory> memory = nullptr;  ///< none for a device
    std::uint64_t memory_offset_bytes = 0;
};

class Region : public std::enable_shared_from_this<Region> {
    struct Token {};

public:
    [[nodiscard]] static Result<std::shared_ptr<const Region>> create(RegionOptions options);
    /// The same bytes and the same tracker at another address.
    [[nodiscard]] Result<std::shared_ptr<const Region>> placed_at(GuestAddress base) const;

    Region(Token token, RegionOptions&& options, GuestRange range, std::shared_ptr<const Region> origin);
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;
    ~Region();

    [[nodiscard]] const std::string& name() const { return options_.name; }
    [[nodiscard]] RegionKind kind() const { return options_.kind; }
    [[nodiscard]] GuestRange range() const { return range_; }
    /// Whether the library may write to it.
    [[nodiscard]] bool is_writable() const { return options_.kind == RegionKind::ram; }
    /// Whether it has bytes at all.
    [[nodiscard]] bool is_memory() const { return options_.kind != RegionKind::device; }
    /// Null for a device.
    [[nodiscard]] const std::shared_ptr<const HostMemory>& memory() const { return options_.memory; }
    [[nodiscard]] std::uint64_t memory_offset_bytes() const { return options_.memory_offset_bytes; }
    /// The first byte; null for a device. For the lookup index and exporters; who accesses goes through a view.
    [[nodiscard]] std::byte* host_base() const {
        return is_memory() ? options_.memory->bytes().data() + options_.memory_offset_bytes : nullptr;
    }

    /// Which pages were written, by offset into the region. It changes while the region does not.
    [[nodiscard]] DirtyTracker& dirty() const { return *tracker_; }

    /// Who holds raw pointers, one name per pointer, for whoever waits for them.
    [[nodiscard]] std::vector<std::string> holders() const;

private:
    friend class PieceHold;
    [[nodiscard]] std::uint64_t add_holder(std::string why) const;
    void remove_holder(std::uint64_t ticket) const;

    RegionOptions options_;
    GuestRange range_;
    std::shared_ptr<const Region> origin_;  ///< whose tracker this region shares; null: its own
    mutable DirtyTracker own_tracker_;
    DirtyTracker* tracker_;
    /// Made for the first holder: most regions never have one, and a map of thousands is built quickly.
    struct Holders;
    mutable std::atomic<Holders*> holders_{nullptr};
};

}  // namespace guestmem
