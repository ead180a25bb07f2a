// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/page_offer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "guestmem/base/check.hpp"

namespace guestmem {

Result<void> check_offer(const PageOffer& offer, std::uint64_t image_bytes) {
    GM_TRY(check_zstd_level(offer.zstd_level));
    if (!is_image_part({.offset_bytes = 0, .size_bytes = image_bytes}, max_paged_image_bytes))
        return Error{Errc::out_of_range,
                     fmt::format("pages of an image of {} bytes: it has whole pages, and {} bytes at most",
                                 image_bytes, max_paged_image_bytes)};
    if (offer.description.size() > max_description_bytes)
        return Error{Errc::out_of_range, fmt::format("pages with a description of {} bytes: the limit is {}",
                                                     offer.description.size(), max_description_bytes)};
    if (offer.state_bytes > max_carried_state_bytes)
        return Error{Errc::out_of_range, fmt::format("pages with a state of {} bytes: the limit is {}",
                                                     offer.state_bytes, max_carried_state_bytes)};
    if (offer.state_bytes > 0 && !offer.read_state)
        return Error{Errc::invalid_argument, "pages with a state that nobody reads"};
    return {};
}

GreetingWriter::GreetingWriter(const PageOffer& offer, std::uint64_t image_bytes, const JoinFrame& wanted)
    : offer_(&offer) {
    hello_.has_zstd = wanted.has_zstd && offer.zstd_level > 0;
    hello_.image_bytes = image_bytes;
    hello_.id = offer.id;
    if (wanted.wants_description)
        hello_.description_bytes = static_cast<std::uint32_t>(offer.description.size());
    if (wanted.wants_state) hello_.state_bytes = offer.state_bytes;
}

bool GreetingWriter::is_done() const {
    return has_said_hello_ && description_at_ == hello_.description_bytes && state_at_ == hello_.state_bytes;
}

Result<void> GreetingWriter::append_next(FrameBytes& out) {
    GM_CHECK(!is_done());
    if (!has_said_hello_) {
        append_frame(out, hello_);
        has_said_hello_ = true;
        return {};
    }
    if (description_at_ < hello_.description_bytes) {
        const auto left = std::as_bytes(std::span{offer_->description}).subspan(description_at_);
        const auto piece = left.first(std::min(left.size(), max_piece_bytes));
        append_frame(out, DescriptionFrame{piece});
        description_at_ += piece.size();
        return {};
    }
    std::vector<std::byte> piece(
        static_cast<std::size_t>(std::min<std::uint64_t>(hello_.state_bytes - state_at_, max_piece_bytes)));
    GM_TRY_CONTEXT(offer_->read_state(state_at_, piece), fmt::format("read the state at {}", state_at_));
    append_frame(out, StateFrame{piece});
    state_at_ += piece.size();
    return {};
}

}  // namespace guestmem
