// SPDX-License-Identifier: Apache-2.0
#pragma once

// A PCI function of this guest, owned through VFIO (container, group, type 1 IOMMU).
//
// Concepts: a *region* is a BAR or the configuration space; *vectors* are MSI-X interrupts that arrive as
//   eventfds; a *removal request* is the kernel asking the owner to let the function go (hot unplug).
// Contract: open() binds the function to vfio-pci, turns memory decoding and bus mastering on (without the
//   latter no MSI-X message leaves the device). The modules vfio-pci and vfio_iommu_type1 are loaded before.
// Threads: one at a time.
// Lifetime: a RegionMapping is destroyed before the VfioFunction that it was made from.
// Limits: 2048 vectors, what MSI-X can have.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "guests/lib/descriptor.hpp"
#include "guests/lib/result.hpp"

namespace guestmem::guest {

inline constexpr std::uint32_t max_vectors = 2048;

struct PciIdentity {
    std::uint16_t vendor;
    std::uint16_t device;
};

// The addresses ("0000:00:02.0") of all functions with this identity, sorted.
Result<std::vector<std::string>> find_pci_functions(PciIdentity identity);

bool has_pci_function(const std::string& address);

class RegionMapping {
public:
    RegionMapping(std::byte* base, std::size_t size) : base_(base), size_(size) {}
    RegionMapping(RegionMapping&& other) noexcept
        : base_(std::exchange(other.base_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    RegionMapping& operator=(RegionMapping&& other) noexcept {
        std::swap(base_, other.base_);
        std::swap(size_, other.size_);
        return *this;
    }
    RegionMapping(const RegionMapping&) = delete;
    RegionMapping& operator=(const RegionMapping&) = delete;
    ~RegionMapping();

    std::byte* base() const { return base_; }
    std::size_t size() const { return size_; }

private:
    std::byte* base_;
    std::size_t size_;
};

class VfioFunction {
public:
    static Result<VfioFunction> open(const std::string& address);

    const std::string& address() const { return address_; }

    Result<RegionMapping> map_bar(std::uint32_t index) const;
    Result<std::uint32_t> read_register(std::uint32_t bar, std::uint64_t offset) const;
    Result<void> write_register(std::uint32_t bar, std::uint64_t offset, std::uint32_t value) const;

    // Enables MSI-X with all vectors that the function has, one eventfd each, in the order of the vectors.
    Result<std::vector<Descriptor>> enable_vectors() const;

    // Readable when the kernel wants the function back; empty when the kernel cannot say so.
    Result<Descriptor> watch_removal() const;

private:
    VfioFunction(std::string address, Descriptor container, Descriptor group, Descriptor device)
        : address_(std::move(address)),
          container_(std::move(container)),
          group_(std::move(group)),
          device_(std::move(device)) {}

    struct Region {
        std::uint64_t offset;
        std::uint64_t size;
        std::uint32_t flags;
    };
    Result<Region> region(std::uint32_t index) const;
    Result<void> enable_memory_and_master() const;
    Result<void> set_eventfds(std::uint32_t index, const std::vector<Descriptor>& events) const;

    std::string address_;
    // Destroyed in the reverse order: device, group, container.
    Descriptor container_;
    Descriptor group_;
    Descriptor device_;
};

}  // namespace guestmem::guest
