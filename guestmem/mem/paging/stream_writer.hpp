// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/paging/page_offer.hpp"
#include "guestmem/mem/paging/page_source.hpp"
#include "guestmem/sys/fd.hpp"

/// A whole image as a stream: greeting, pages in ascending order, end.
///
/// Contract: all or an error; after an error of the source or of the offer the stream ends with an error frame, so that
/// its reader knows why. Writes block as the descriptor does: one that does not block is an error when it is full. A
/// reader that is gone is an error (unavailable), not a SIGPIPE. Pages that a source gives of itself, ahead of those
/// that were asked for, are written in the order in which it gives them, each once.
/// Threads: one at a time.
/// Limits: a source is asked for max_part_bytes at once, for 64 MiB where it has zeros only. It waits while a reader
/// does not read: a server behind a RemoteSource drops it when that lasts longer than its stall_timeout_ms and the
/// server's answer does not fit into the socket.
/// Cost: a read and a write of each page that is no zeros; runs of zeros are one frame each.
/// Example:
///     GM_TRY(write_stream(pipe, source, offer, {}));

namespace guestmem {

struct StreamTotals {
    std::uint64_t count_pages = 0;    ///< written as bytes, not as zeros
    std::uint64_t written_bytes = 0;  ///< of the stream
};

/// `done_bytes` of the image.
using StreamProgress = std::function<void(std::uint64_t done_bytes)>;

[[nodiscard]] Result<StreamTotals> write_stream(FdView out, PageSource& source, const PageOffer& offer,
                                                const StreamProgress& progress = {});

}  // namespace guestmem
