// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/page_receiver.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <variant>

namespace guestmem {
namespace {

Error unexpected_end(bool is_stream) {
    if (is_stream) return Error{Errc::corrupt, "it ends in the middle"};
    return Error{Errc::unavailable, ECONNRESET, "it has closed the connection"};
}

bool has_more_than(const HelloFrame& hello, const JoinFrame& asked) {
    return (hello.has_zstd && !asked.has_zstd) || (hello.description_bytes > 0 && !asked.wants_description) ||
           (hello.state_bytes > 0 && !asked.wants_state);
}

std::chrono::milliseconds time_for_state(std::chrono::milliseconds patience, std::uint64_t state_bytes) {
    constexpr std::uint64_t ms_per_s = 1000;
    // The longest patience with a state's time on top is still a number of milliseconds.
    return std::min<std::chrono::milliseconds>(patience, Deadline::farthest) +
           std::chrono::milliseconds{state_bytes * ms_per_s / min_state_rate_bytes};
}

}  // namespace

std::optional<ImagePart> part_of(const PageFrame& frame) {
    if (const auto* const zeros = std::get_if<ZerosFrame>(&frame)) return zeros->part;
    if (const auto* const pages = std::get_if<PagesFrame>(&frame))
        return ImagePart{.offset_bytes = pages->offset_bytes, .size_bytes = pages->pages.size()};
    return std::nullopt;
}

Result<void> give(const PageFrame& frame, PageSink& sink) {
    if (const auto* const zeros = std::get_if<ZerosFrame>(&frame)) return sink.take_zeros(zeros->part);
    if (const auto* const pages = std::get_if<PagesFrame>(&frame))
        return sink.take_pages(pages->offset_bytes, pages->pages);
    return {};
}

Error PageReceiver::fail(Error error) {
    if (!failed_) failed_ = std::move(error).with_context(from_);
    return *failed_;
}

Result<std::optional<PageFrame>> PageReceiver::next_frame() {
    if (failed_) return *failed_;
    auto frame = parser_.next();
    if (!frame) return fail(std::move(frame).error());
    if (*frame)
        if (const auto* const said = std::get_if<ErrorFrame>(&**frame))
            return fail(Error{said->code, said->text});
    return frame;
}

Result<void> PageReceiver::read_once(FdView fd) {
    if (failed_) return *failed_;
    auto count = read_some(fd, parser_.room());
    if (!count) {
        if (count.error().os_error() == EAGAIN) return {};
        return fail(std::move(count).error());
    }
    if (*count == 0) return fail(unexpected_end(is_stream_));
    parser_.take(*count);
    return {};
}

Result<PageFrame> PageReceiver::wait_frame(FdView fd, const Deadline& deadline) {
    for (;;) {
        // Looked at before each frame: one that sends without end is not read for longer than the deadline either.
        const bool has_time = !deadline.has_passed();
        if (has_time) {
            auto frame = GM_TRY(next_frame());
            if (frame) return std::move(*frame);
        }
        auto is_readable = has_time ? wait_readable(fd, deadline) : Result<bool>{false};
        if (!is_readable) return fail(std::move(is_readable).error());
        if (!*is_readable)
            return fail(Error{
                Errc::timed_out, ETIMEDOUT,
                fmt::format("it has not sent what was waited for within {} ms", options_.patience.count())});
        GM_TRY(read_once(fd));
    }
}

Result<void> PageReceiver::take_hello(const PageFrame& frame, const std::optional<JoinFrame>& asked) {
    const auto* const hello = std::get_if<HelloFrame>(&frame);
    if (hello == nullptr) return Error{Errc::corrupt, "it begins without a greeting"};
    if (asked && has_more_than(*hello, *asked))
        return Error{Errc::corrupt, "its greeting has what was not asked for"};
    if (options_.expected_id && *options_.expected_id != hello->id)
        return Error{Errc::invalid_argument,
                     fmt::format("it has the pages of {}; those of {} are wanted", to_string(hello->id),
                                 to_string(*options_.expected_id))};
    if (hello->image_bytes > options_.max_image_bytes)
        return Error{Errc::out_of_range, fmt::format("its image has {} bytes; {} is the limit here",
                                                     hello->image_bytes, options_.max_image_bytes)};
    greeting_.id = hello->id;
    greeting_.image_bytes = hello->image_bytes;
    greeting_.has_zstd = hello->has_zstd;
    greeting_.description.reserve(hello->description_bytes);
    greeting_.state_bytes = hello->state_bytes;
    return {};
}

Result<void> PageReceiver::take_blobs(FdView fd, Deadline deadline) {
    bool has_state = false;
    while (!parser_.has_greeting()) {
        const PageFrame frame = GM_TRY(wait_frame(fd, deadline));
        if (const auto* const text = std::get_if<DescriptionFrame>(&frame))
            greeting_.description.append(reinterpret_cast<const char*>(text->bytes.data()),
                                         text->bytes.size());
        const auto* const state = std::get_if<StateFrame>(&frame);
        if (state == nullptr) continue;
        if (!std::exchange(has_state, true))
            deadline = Deadline{time_for_state(options_.patience, greeting_.state_bytes)};
        if (!options_.take_state) continue;
        const auto begin = std::chrono::steady_clock::now();
        GM_TRY_CONTEXT(options_.take_state(state->bytes), fmt::format("{}: keep its state", from_));
        deadline.extend(std::chrono::steady_clock::now() - begin);
    }
    return {};
}

Result<void> PageReceiver::read_greeting(FdView fd, const Deadline& deadline,
                                         const std::optional<JoinFrame>& asked) {
    const PageFrame frame = GM_TRY(wait_frame(fd, deadline));
    auto taken = take_hello(frame, asked);
    if (!taken) return fail(std::move(taken).error());
    return take_blobs(fd, deadline);
}

Result<void> PageReceiver::judge(const PageFrame& frame) {
    if (options_.judge == nullptr) return {};
    Result<void> judged;
    if (const auto* const zeros = std::get_if<ZerosFrame>(&frame))
        judged = options_.judge->check_zeros(zeros->part);
    if (const auto* const pages = std::get_if<PagesFrame>(&frame))
        judged = options_.judge->check_pages(pages->offset_bytes, pages->pages);
    if (!judged) return fail(std::move(judged).error());
    return {};
}

}  // namespace guestmem
