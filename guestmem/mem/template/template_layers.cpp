// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/template_layers.hpp"

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/template/template.hpp"

namespace guestmem {

namespace {

/// The layers from `first` on. At most max_template_layers deep.
Result<void> visit_from(std::size_t first, std::span<const Template* const> layers, ImagePart part,
                        const PieceVisitor& visit) {
    const PageRuns* const own = layers[first]->own_pages();
    if (own == nullptr || first + 1 == layers.size()) return visit(first, part);
    return own->split(part.offset_bytes / page_size_bytes,
                      (part.offset_bytes + part.size_bytes) / page_size_bytes,
                      [&](std::uint64_t begin, std::uint64_t behind, bool is_in) -> Result<void> {
                          const ImagePart piece{begin * page_size_bytes, (behind - begin) * page_size_bytes};
                          return is_in ? visit(first, piece) : visit_from(first + 1, layers, piece, visit);
                      });
}

}  // namespace

Result<void> for_each_piece(std::span<const Template* const> layers, ImagePart part,
                            const PieceVisitor& visit) {
    if (part.size_bytes == 0) return {};
    return visit_from(0, layers, part, visit);
}

}  // namespace guestmem
