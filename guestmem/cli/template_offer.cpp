// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/template_offer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "guestmem/mem/paging/page_frame.hpp"

namespace guestmem::cli {

Result<PageOffer> offer_of(const Template& base, int compression_level) {
    PageOffer offer;
    offer.id = GM_TRY(to_image_id(base.manifest().id));
    offer.description = to_text(base.manifest());
    offer.zstd_level = compression_level;
    auto state = GM_TRY(base.read_state());
    const auto shared = std::make_shared<const std::vector<std::byte>>(std::move(state));
    offer.state_bytes = shared->size();
    offer.read_state = [shared](std::uint64_t offset_bytes, std::span<std::byte> bytes) -> Result<void> {
        std::ranges::copy(std::span{*shared}.subspan(offset_bytes, bytes.size()), bytes.begin());
        return {};
    };
    return offer;
}

Result<Manifest> manifest_of(const Greeting& greeting) {
    Manifest manifest = GM_TRY_CONTEXT(parse_manifest(greeting.description), "the manifest that came");
    if (manifest.image_bytes != greeting.image_bytes)
        return Error{Errc::corrupt,
                     fmt::format("the manifest that came says {} bytes of memory, and {} are sent",
                                 manifest.image_bytes, greeting.image_bytes)};
    if (manifest.id != to_string(greeting.id))
        return Error{Errc::corrupt,
                     fmt::format("the manifest that came is that of template {}, and pages of {} are sent",
                                 manifest.id, to_string(greeting.id))};
    return manifest;
}

}  // namespace guestmem::cli
