// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/range.hpp"

/// Who gets which part of a guest's RAM before it starts: kernel, initrd, tables, data.
///
/// Concepts: a claim is a range with a name. claim() takes a given place, claim_low() and claim_high() find one;
/// block() takes a place whether it is RAM or not (video memory, tables that somebody else writes).
/// Contract: claims never overlap, and lie in RAM as a whole; RAM ranges that follow each other are one. An error names
/// both claims, or what RAM there is. Nothing is changed by a call that fails.
/// Threads: one at a time.
/// Cost: each call goes through all claims; there are as many as an image has segments (at most 128), and a few.
/// Example:
///     BootSpace space{ram};
///     GM_TRY(space.claim("kernel", kernel_range));
///     const GuestRange initrd = GM_TRY(space.claim_high("initrd", size, GuestAddress{0x7fffffff}));

namespace guestmem::vmm {

struct Claim {
    std::string name;
    GuestRange range;
};

class BootSpace {
public:
    explicit BootSpace(std::span<const GuestRange> ram);

    [[nodiscard]] Result<void> claim(std::string name, const GuestRange& range);
    void block(std::string name, const GuestRange& range);
    /// As high as it fits, the last byte not above `last_allowed`, the first in a page's beginning.
    [[nodiscard]] Result<GuestRange> claim_high(std::string name, std::uint64_t size_bytes,
                                                GuestAddress last_allowed);
    /// As low as it fits, not below `first_allowed`, at a multiple of `alignment`.
    [[nodiscard]] Result<GuestRange> claim_low(std::string name, std::uint64_t size_bytes,
                                               GuestAddress first_allowed, std::uint64_t alignment);

    /// Whether all of the range is RAM, claimed or not.
    [[nodiscard]] bool is_ram(const GuestRange& range) const;
    /// In the order in which they were made.
    [[nodiscard]] const std::vector<Claim>& claims() const { return claims_; }
    /// "RAM is 0x0 to 0x7ffffff"
    [[nodiscard]] std::string ram_text() const;

private:
    [[nodiscard]] const Claim* find_overlap(const GuestRange& range) const;

    std::vector<GuestRange> ram_;  ///< ascending, none follows another
    std::vector<Claim> claims_;
};

/// "0x1000 to 0x1fff"
[[nodiscard]] std::string to_text(const GuestRange& range);

}  // namespace guestmem::vmm
