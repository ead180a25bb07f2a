// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/base/result.hpp"
#include "guestmem/mem/paging/page_offer.hpp"
#include "guestmem/mem/paging/page_receiver.hpp"
#include "guestmem/mem/template/manifest.hpp"
#include "guestmem/mem/template/template.hpp"

/// A template as it is sent: its manifest is the description of the pages, its state goes with them.
///
/// Threads: one at a time.

namespace guestmem::cli {

/// Level 0: pages are not compressed.
[[nodiscard]] Result<PageOffer> offer_of(const Template& base, int compression_level);
/// The manifest in a greeting's description; one of another template than the greeting's is an error.
[[nodiscard]] Result<Manifest> manifest_of(const Greeting& greeting);

}  // namespace guestmem::cli
