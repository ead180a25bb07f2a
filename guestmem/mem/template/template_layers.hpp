// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <functional>
#include <span>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/paging/page_source.hpp"

/// Which template of a chain of differences has which pages.
///
/// Concepts: layer 0 is the difference itself, the last one the template that is none and has all pages. A page is that
/// of the first layer which has it.
/// Contract: pieces come in ascending order, whole pages, and cover the part; two that follow each other are of
/// different layers.
/// Threads: any.

namespace guestmem {

class Template;

using PieceVisitor = std::function<Result<void>(std::size_t layer, ImagePart part)>;

/// Calls back for each piece until it is an error.
[[nodiscard]] Result<void> for_each_piece(std::span<const Template* const> layers, ImagePart part,
                                          const PieceVisitor& visit);

}  // namespace guestmem
