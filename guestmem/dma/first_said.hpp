// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "guestmem/dma/facts.hpp"

/// Which fact of a list is the first to select a device, as far as that is seen without the machine.
///
/// Concepts: devices are asked for that have an address of their own: one PCI function, or registers. Facts are told
/// one after the other with ascending numbers. Seen are ranges, paths of one hop that are no bridge, registers, and the
/// rest of a segment, which is the last to be asked; paths through bridges and names are not.
/// Contract: a requester id has the fact's mask applied first.
/// Limits: max_masks different masks in a segment; facts with further ones are not seen.
/// Cost: n log n in devices and facts, however ranges overlap.
/// Threads: one at a time.

namespace guestmem::dma {

class FirstSaid {
public:
    static constexpr std::size_t max_masks = 8;

    explicit FirstSaid(std::span<const Selector> devices);

    void tell(const Selector& who, std::uint16_t rid_mask, std::size_t fact);
    /// A fact that is about every device.
    void tell_of_all(std::size_t fact) { of_all_ = of_all_.value_or(fact); }
    /// Of the device with that index.
    [[nodiscard]] std::optional<std::size_t> first_of(std::size_t device) const;

private:
    /// The functions of a segment in the order of their masked ids; `next` leaves out those that are settled.
    struct Line {
        std::vector<std::pair<std::uint16_t, std::size_t>> functions = {};
        std::vector<std::size_t> next = {};
    };

    [[nodiscard]] Line* line_of(std::uint16_t segment, std::uint16_t rid_mask);
    void tell_of_range(const PciRange& range, std::uint16_t rid_mask, std::size_t fact);

    std::vector<Selector> devices_;
    std::vector<std::optional<std::size_t>> first_;
    std::map<std::uint16_t, std::vector<std::pair<std::uint16_t, std::size_t>>> segments_;
    std::map<std::uint16_t, std::map<std::uint16_t, Line>> lines_;  ///< by segment and mask
    std::map<std::uint64_t, std::vector<std::size_t>> registers_;
    std::map<std::uint16_t, std::size_t> rests_;
    std::optional<std::size_t> of_all_;
};

}  // namespace guestmem::dma
