// SPDX-License-Identifier: Apache-2.0
/// Fuzzes page_frame.hpp: any bytes as what a client, a server or a stream says.
///
/// Input: a byte that says whose flow it is (its remainder by 3) and in pieces of which size it comes (the rest), then
/// the flow.
/// Asserts: the frames are the same however the bytes are cut; what is given is within the image and the limits, in an
/// order that the flow has; an error stays; there is room for more while there is no whole frame.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/paging/page_frame.hpp"

namespace guestmem {
namespace {

struct Checker {
    std::optional<HelloFrame> hello;
    std::uint64_t description_bytes = 0;
    std::uint64_t state_bytes = 0;
    std::string told;  ///< the frames, to be compared

    void tell(std::uint64_t a, std::uint64_t b) { told += std::to_string(a) + "," + std::to_string(b) + ";"; }
    void check_part(ImagePart part) const { GM_CHECK(hello && is_image_part(part, hello->image_bytes)); }

    void operator()(const JoinFrame& frame) {
        GM_CHECK(!hello);
        tell(frame.has_zstd ? 1 : 0, frame.wants_state ? 1 : 0);
    }
    void operator()(const RequestFrame& frame) {
        GM_CHECK(is_image_part(frame.part, max_paged_image_bytes));
        tell(frame.number, frame.part.offset_bytes);
    }
    void operator()(const HelloFrame& frame) {
        GM_CHECK(!hello &&
                 is_image_part({.offset_bytes = 0, .size_bytes = frame.image_bytes}, max_paged_image_bytes));
        GM_CHECK(frame.description_bytes <= max_description_bytes);
        GM_CHECK(frame.state_bytes <= max_carried_state_bytes);
        hello = frame;
        tell(frame.image_bytes, frame.state_bytes);
    }
    void operator()(const DescriptionFrame& frame) {
        description_bytes += frame.bytes.size();
        GM_CHECK(hello && description_bytes <= hello->description_bytes && state_bytes == 0);
        tell(17, frame.bytes.size());
    }
    void operator()(const StateFrame& frame) {
        state_bytes += frame.bytes.size();
        GM_CHECK(hello && state_bytes <= hello->state_bytes);
        GM_CHECK(description_bytes == hello->description_bytes);
        tell(18, frame.bytes.size());
    }
    void operator()(const PagesFrame& frame) {
        check_part({.offset_bytes = frame.offset_bytes, .size_bytes = frame.pages.size()});
        GM_CHECK(frame.pages.size() <= max_piece_bytes && state_bytes == hello->state_bytes);
        std::uint64_t total = 0;
        for (const std::byte byte : frame.pages) total = total * 31 + static_cast<std::uint64_t>(byte);
        tell(frame.offset_bytes, total);
    }
    void operator()(const ZerosFrame& frame) {
        check_part(frame.part);
        tell(frame.part.offset_bytes, frame.part.size_bytes);
    }
    void operator()(const DoneFrame& frame) { tell(21, frame.number); }
    void operator()(const ErrorFrame& frame) {
        GM_CHECK(frame.text.size() <= max_error_text_bytes);
        GM_CHECK(std::ranges::all_of(frame.text, [](char c) { return c >= ' ' && c <= '~'; }));
        tell(static_cast<std::uint64_t>(frame.code), frame.text.size());
    }
    void operator()(const EndFrame& frame) { tell(frame.count_pages, frame.sum); }
};

/// Reads all in pieces of that size; what was read, and why it stopped.
std::string read_all(FrameFlow flow, std::span<const std::byte> bytes, std::size_t piece_bytes) {
    FrameParser parser{flow};
    Checker checker;
    while (true) {
        auto frame = parser.next();
        if (!frame) {
            GM_CHECK(frame.error().code() == Errc::corrupt || frame.error().code() == Errc::unsupported);
            const auto again = parser.next();
            GM_CHECK(!again && again.error().message() == frame.error().message());
            return checker.told + frame.error().message();
        }
        if (*frame) {
            std::visit(checker, **frame);
            continue;
        }
        const auto room = parser.room();
        GM_CHECK(!room.empty());
        if (bytes.empty()) return checker.told + (parser.has_part() ? "part" : "");
        const std::size_t count = std::min({piece_bytes, room.size(), bytes.size()});
        std::ranges::copy(bytes.first(count), room.begin());
        parser.take(count);
        bytes = bytes.subspan(count);
    }
}

}  // namespace
}  // namespace guestmem

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace guestmem;  // NOLINT(google-build-using-namespace): its subject
    if (size == 0) return 0;
    constexpr unsigned count_flows = 3;
    const auto flow = static_cast<FrameFlow>(data[0] % count_flows);
    const std::size_t piece_bytes = 1 + data[0] / count_flows;
    const auto bytes = std::as_bytes(std::span{data, size}.subspan(1));
    GM_CHECK(read_all(flow, bytes, piece_bytes) == read_all(flow, bytes, size));
    return 0;
}
