// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/paging/page_receiver.hpp"
#include "guestmem/mem/paging/page_source.hpp"
#include "guestmem/mem/paging/part_set.hpp"
#include "guestmem/sys/fd.hpp"

/// Pages from a stream that nobody asks: a pipe, a file, a socket. They come in the order in which they were written.
///
/// Contract: as PageSource says; it pushes. fetch() reads on until the wanted pages have passed, and gives all that
/// passes; pages that have passed before it are an error (invalid_argument), since a stream does not go back. A
/// stream has each page once, as bytes or as zeros: a page that comes twice, an end before the end frame, and an end
/// frame with pages missing are errors (corrupt). What the sink refuses is kept, and given again by the next call.
/// What follows the end frame is not looked at.
/// Threads: one at a time.
/// Limits: PartSet::max_parts: a stream in a very mixed order is refused. `patience` is for one call of fetch(), which
/// may have to read all that comes before the wanted pages. Waiting for arrivals() takes no longer, which is what
/// can_be_asked() says.
/// Example:
///     auto source = GM_TRY(StreamSource::open(std::move(pipe), {.patience = std::chrono::minutes{5}}));
///     while (GM_TRY(source->take_arrivals(sink))) ...
/// Known holes: those of PageReceiver. Somebody else who reads the same pipe can make take_arrivals() wait.

namespace guestmem {

class StreamSource : public PageSource {
public:
    /// Reads the greeting, with its description and state.
    [[nodiscard]] static Result<std::unique_ptr<StreamSource>> open(Fd fd, ReceiveOptions options);

    [[nodiscard]] const Greeting& greeting() const { return receiver_.greeting(); }
    /// All pages and the end frame have come.
    [[nodiscard]] bool is_complete() const { return is_complete_; }

    [[nodiscard]] std::uint64_t size_bytes() const override { return greeting().image_bytes; }
    [[nodiscard]] Result<void> fetch(ImagePart wanted, PageSink& sink) override;
    /// Not open when the stream is complete.
    [[nodiscard]] FdView arrivals() const override { return is_complete_ ? FdView{} : fd_.view(); }
    [[nodiscard]] bool can_be_asked() const override { return is_complete_; }
    /// One read and what it brought, which arrivals() does not tell of any more.
    [[nodiscard]] Result<bool> take_arrivals(PageSink& sink) override;

private:
    StreamSource(Fd fd, PageReceiver receiver) : fd_(std::move(fd)), receiver_(std::move(receiver)) {}
    /// Checks what has come; pages wait in pending_.
    [[nodiscard]] Result<void> accept(PageFrame frame);
    [[nodiscard]] Result<void> give_pending(PageSink& sink);
    /// All that was read.
    [[nodiscard]] Result<void> give_read(PageSink& sink);

    Fd fd_;
    PageReceiver receiver_;
    std::optional<PageFrame> pending_;
    PartSet given_;
    bool is_complete_ = false;
};

}  // namespace guestmem
