// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/stream_source.hpp"

#include <fmt/format.h>

#include <utility>
#include <variant>

namespace guestmem {

Result<std::unique_ptr<StreamSource>> StreamSource::open(Fd fd, ReceiveOptions options) {
    const Deadline deadline{options.patience};
    PageReceiver receiver{FrameFlow::stream, "stream of pages", std::move(options)};
    std::unique_ptr<StreamSource> source{new StreamSource{std::move(fd), std::move(receiver)}};
    GM_TRY(source->receiver_.read_greeting(source->fd_, deadline));
    return source;
}

Result<void> StreamSource::accept(PageFrame frame) {
    if (const auto part = part_of(frame)) {
        if (given_.contains_any(*part))
            return receiver_.fail(
                Error{Errc::corrupt, fmt::format("pages come twice: some of the {} bytes at {}",
                                                 part->size_bytes, part->offset_bytes)});
        GM_TRY(receiver_.judge(frame));
        pending_ = std::move(frame);
        return {};
    }
    if (const auto missing = given_.first_missing({.offset_bytes = 0, .size_bytes = size_bytes()}))
        return receiver_.fail(
            Error{Errc::corrupt, fmt::format("it ends, and {} bytes have not come, the first at {}",
                                             size_bytes() - given_.size_bytes(), missing->offset_bytes)});
    is_complete_ = true;
    return {};
}

Result<void> StreamSource::give_pending(PageSink& sink) {
    if (!pending_) return {};
    GM_TRY(give(*pending_, sink));
    auto added = given_.add(part_of(*pending_).value_or(ImagePart{}));
    pending_.reset();
    if (!added) return receiver_.fail(std::move(added).error());
    return {};
}

Result<void> StreamSource::give_read(PageSink& sink) {
    GM_TRY(give_pending(sink));
    while (!is_complete_) {
        auto frame = GM_TRY(receiver_.next_frame());
        if (!frame) break;
        GM_TRY(accept(std::move(*frame)));
        GM_TRY(give_pending(sink));
    }
    return {};
}

Result<void> StreamSource::fetch(ImagePart wanted, PageSink& sink) {
    if (receiver_.failed()) return *receiver_.failed();
    if (wanted.size_bytes == 0) return {};
    if (!is_image_part(wanted, size_bytes()))
        return Error{Errc::invalid_argument,
                     fmt::format("fetch {} bytes at {}: no whole pages of an image of {} bytes",
                                 wanted.size_bytes, wanted.offset_bytes, size_bytes())};
    Deadline deadline{receiver_.options().patience};
    if (given_.contains_any(wanted))
        return Error{
            Errc::invalid_argument,
            fmt::format(
                "fetch {} bytes at {}: some of these pages have passed, and a stream does not go back",
                wanted.size_bytes, wanted.offset_bytes)};
    GM_TRY(give_read(sink));
    while (given_.first_missing(wanted)) {
        GM_TRY(accept(GM_TRY(receiver_.wait_frame(fd_, deadline))));
        // The time that the sink takes is not the sender's.
        const auto begin = std::chrono::steady_clock::now();
        GM_TRY(give_pending(sink));
        deadline.extend(std::chrono::steady_clock::now() - begin);
    }
    return give_read(sink);
}

Result<bool> StreamSource::take_arrivals(PageSink& sink) {
    if (receiver_.failed()) return *receiver_.failed();
    GM_TRY(give_read(sink));
    if (is_complete_) return false;
    auto is_readable = wait_readable(fd_, Deadline{std::chrono::milliseconds{0}});
    if (!is_readable) return receiver_.fail(std::move(is_readable).error());
    if (*is_readable) {
        GM_TRY(receiver_.read_once(fd_));
        GM_TRY(give_read(sink));
    }
    return !is_complete_;
}

}  // namespace guestmem
