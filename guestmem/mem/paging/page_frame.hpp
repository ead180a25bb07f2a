// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/paging/page_source.hpp"

/// The frames in which pages of an image go over a socket or through a stream: bytes to checked values and back.
///
/// Concepts: docs/protocols/pages.md has every byte. There are three flows: what a client says, what a server says, and
/// a stream that nobody asks for. Each begins with a greeting (join, hello).
/// Contract: pure: no I/O, no clock. A FrameParser takes bytes as they come and gives whole frames, which are checked:
/// kinds that this flow has, in an order that it has; parts of whole pages within the image; sums that fit;
/// compressed pages that have exactly the announced size. Anything else is an error (corrupt, or unsupported for
/// another version), and stays it. What only a receiver knows is left to it: what it asked for, what came before.
/// Threads: one at a time.
/// Limits: max_frame_bytes for a frame, max_piece_bytes of pages or text in one. A parser has room for two frames, and
/// for one piece of pages; nothing in a frame makes it take more.
/// Cost: a raw piece is summed and not copied. Compressed pages are decompressed once, into the parser's own memory.
/// Example:
///     FrameParser parser{FrameFlow::stream};
///     parser.take(GM_TRY(read_some(fd, parser.room())));
///     while (const auto frame = GM_TRY(parser.next())) ...

namespace guestmem {

inline constexpr std::uint32_t pages_version = 1;
/// The pages of one frame, uncompressed: what is fetched ahead of a fault, and far below max_part_bytes, so that many
/// who are served in turn wait a short time for each other.
inline constexpr std::size_t max_piece_bytes = std::size_t{64} * 1024;
inline constexpr std::size_t frame_head_bytes = 8;
inline constexpr std::size_t pages_head_bytes = 24;
inline constexpr std::size_t max_frame_bytes = frame_head_bytes + pages_head_bytes + max_piece_bytes;
inline constexpr std::uint64_t max_paged_image_bytes = std::uint64_t{1} << 46;
inline constexpr std::uint32_t max_description_bytes = std::uint32_t{1} << 20;
inline constexpr std::uint64_t max_carried_state_bytes = std::uint64_t{1} << 32;
inline constexpr std::size_t max_error_text_bytes = 512;

static_assert(max_piece_bytes <= max_part_bytes);

using ImageId = std::array<std::byte, 16>;

enum class FrameFlow : std::uint8_t { from_client, from_server, stream };

/// A client's greeting: what it takes.
struct JoinFrame {
    bool has_zstd = false;
    bool wants_description = false;
    bool wants_state = false;

    friend bool operator==(const JoinFrame&, const JoinFrame&) = default;
};

/// The wanted pages; the number comes back when they have been sent.
struct RequestFrame {
    std::uint64_t number = 0;
    ImagePart part;

    friend bool operator==(const RequestFrame&, const RequestFrame&) = default;
};

/// The greeting of a server or stream: what the image is, and how much of description and state follows.
struct HelloFrame {
    bool has_zstd = false;
    std::uint64_t image_bytes = 0;
    ImageId id = {};
    std::uint32_t description_bytes = 0;
    std::uint64_t state_bytes = 0;

    friend bool operator==(const HelloFrame&, const HelloFrame&) = default;
};

/// The next bytes of description or state.
struct DescriptionFrame {
    std::span<const std::byte> bytes;
};
struct StateFrame {
    std::span<const std::byte> bytes;
};
struct PagesFrame {
    std::uint64_t offset_bytes = 0;
    std::span<const std::byte> pages;
};
struct ZerosFrame {
    ImagePart part;
};
struct DoneFrame {
    std::uint64_t number = 0;
};
struct ErrorFrame {
    Errc code = Errc::io;
    std::string text;  ///< as a parser gives it: printable ASCII
};
struct EndFrame {
    std::uint64_t count_pages = 0;  ///< that came as bytes, not as zeros
    std::uint64_t sum = 0;
};

using PageFrame = std::variant<JoinFrame, RequestFrame, HelloFrame, DescriptionFrame, StateFrame, PagesFrame,
                               ZerosFrame, DoneFrame, ErrorFrame, EndFrame>;

/// The sum of all pages and zeros of a stream, in its order.
class StreamSum {
public:
    void add(ImagePart part, std::uint64_t sum);
    [[nodiscard]] std::uint64_t value() const { return value_; }

private:
    std::uint64_t value_ = 0;
};

class FrameParser {
public:
    explicit FrameParser(FrameFlow flow);
    FrameParser(FrameParser&&) noexcept;
    FrameParser& operator=(FrameParser&&) noexcept;
    ~FrameParser();

    /// Where the next bytes belong. Never empty after next() has said that there is no whole frame.
    [[nodiscard]] std::span<std::byte> room();
    /// So many bytes were put there.
    void take(std::size_t count_bytes);
    /// The next whole frame. What it points to stands until the next call of next() or room().
    [[nodiscard]] Result<std::optional<PageFrame>> next();

    /// A frame has begun and is not whole: bytes that end here are cut off.
    [[nodiscard]] bool has_part() const;
    /// After the greeting all of description and state has come.
    [[nodiscard]] bool has_greeting() const;

private:
    struct State;
    std::unique_ptr<State> state_;
};

using FrameBytes = std::vector<std::byte>;

/// Each appends one whole frame; limits are the caller's invariants.
void append_frame(FrameBytes& out, const JoinFrame& frame);
void append_frame(FrameBytes& out, const RequestFrame& frame);
void append_frame(FrameBytes& out, const HelloFrame& frame);
/// 1 to max_piece_bytes.
void append_frame(FrameBytes& out, const DescriptionFrame& frame);
void append_frame(FrameBytes& out, const StateFrame& frame);
void append_frame(FrameBytes& out, const DoneFrame& frame);
/// A text that is too long is cut.
void append_frame(FrameBytes& out, const ErrorFrame& frame);
void append_frame(FrameBytes& out, const EndFrame& frame);
[[nodiscard]] ErrorFrame to_error_frame(const Error& error);

/// Pages to frames, one for each piece, compressed where that makes them smaller; runs of zeros become zeros frames.
class PageEncoder {
public:
    PageEncoder();
    PageEncoder(PageEncoder&&) noexcept;
    PageEncoder& operator=(PageEncoder&&) noexcept;
    ~PageEncoder();

    /// A zstd level; 0: raw.
    void append_pages(FrameBytes& out, std::uint64_t offset_bytes, std::span<const std::byte> pages,
                      int zstd_level);
    void append_zeros(FrameBytes& out, ImagePart part);
    /// What a stream ends with: all that was appended so far.
    [[nodiscard]] EndFrame end_frame() const { return {.count_pages = count_pages_, .sum = sum_.value()}; }

private:
    void append_piece(FrameBytes& out, std::uint64_t offset_bytes, std::span<const std::byte> pages,
                      int zstd_level);

    struct Compressor;
    std::unique_ptr<Compressor> compressor_;
    std::uint64_t count_pages_ = 0;
    StreamSum sum_;
};

/// zstd's levels, as far as they are of use here; 0 is raw.
inline constexpr int max_zstd_level = 19;
/// Whether this is a level to append with.
[[nodiscard]] Result<void> check_zstd_level(int level);

/// Whole pages within the image, one at least.
[[nodiscard]] bool is_image_part(ImagePart part, std::uint64_t image_bytes);

/// 32 hexadecimal digits, both ways.
[[nodiscard]] Result<ImageId> to_image_id(std::string_view text);
[[nodiscard]] std::string to_string(const ImageId& id);

}  // namespace guestmem
