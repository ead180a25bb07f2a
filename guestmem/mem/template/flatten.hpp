// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/template/image_check.hpp"
#include "guestmem/mem/template/maker.hpp"
#include "guestmem/mem/template/manifest.hpp"

/// One template out of a chain of differences, or of one in another encoding.
///
/// Contract: the result has the memory, the state and the provenance of the original, all its pages, no parent, and an
/// id of its own; it exists whole or not at all. The original and its parents stay; every page is compared with its sum
/// on the way.
/// Threads: any.
/// Cost: all pages that are data are read, summed and written once.

namespace guestmem {

class Template;

[[nodiscard]] Result<Manifest> flatten_template(const std::shared_ptr<const Template>& original,
                                                const std::string& folder, const MakerOptions& options = {},
                                                const ImageProgress& progress = {});

}  // namespace guestmem
