// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/paging/page_source.hpp"

/// Which parts of an image have been there.
///
/// Contract: parts do not wrap (is_image_part). What is added twice is told apart from what is added first.
/// Limits: parts that touch are one; max_parts that do not touch. An image that comes in its order is one part; one
/// whose pages come in the worst of orders would need a part for each second page, and is refused instead.
/// Threads: one at a time.
/// Cost: one look-up in a tree for each call; about 48 bytes for a part.

namespace guestmem {

class PartSet {
public:
    static constexpr std::size_t max_parts = std::size_t{1} << 18;

    [[nodiscard]] bool contains_any(ImagePart part) const;
    /// The first piece of `within` that is not there; nothing when all of it is.
    [[nodiscard]] std::optional<ImagePart> first_missing(ImagePart within) const;
    /// What is there already stays there. An error (exhausted) when there are too many parts.
    [[nodiscard]] Result<void> add(ImagePart part);

    [[nodiscard]] std::uint64_t size_bytes() const { return size_bytes_; }
    [[nodiscard]] std::size_t count_parts() const { return parts_.size(); }

private:
    std::map<std::uint64_t, std::uint64_t> parts_;  ///< begin to the byte behind the last
    std::uint64_t size_bytes_ = 0;
};

}  // namespace guestmem
