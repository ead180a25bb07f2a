// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/page_frame.hpp"

#define XXH_INLINE_ALL  // NOLINT(readability-identifier-naming): what xxhash.h looks for
#include <fmt/format.h>
#include <xxhash.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

#include "guestmem/base/check.hpp"
#include "guestmem/base/endian.hpp"
#include "guestmem/base/sizes.hpp"

namespace guestmem {
namespace {

enum class Kind : std::uint32_t {
    join = 1,
    request = 2,
    hello = 16,
    description = 17,
    state = 18,
    pages = 19,
    zeros = 20,
    done = 21,
    error = 22,
    end = 23,
};

enum class Encoding : std::uint32_t { raw = 0, zstd = 1 };

/// "GMPAGES" and a zero byte.
constexpr std::uint64_t magic = 0x0053'4547'4150'4d47;

constexpr std::uint32_t zstd_magic = ZSTD_MAGICNUMBER;

constexpr std::size_t join_bytes = 16;
constexpr std::size_t request_bytes = 24;
constexpr std::size_t hello_bytes = 56;
constexpr std::size_t blob_head_bytes = 8;
constexpr std::size_t zeros_bytes = 16;
constexpr std::size_t done_bytes = 8;
constexpr std::size_t error_head_bytes = 4;
constexpr std::size_t end_bytes = 16;

constexpr std::uint32_t has_zstd_bit = 1;
constexpr std::uint32_t wants_description_bit = 2;
constexpr std::uint32_t wants_state_bit = 4;

std::uint64_t sum_of(std::span<const std::byte> bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

template <typename T>
T load_at(std::span<const std::byte> bytes, std::size_t offset) {
    return load_little<T>(bytes.subspan(offset).template first<sizeof(T)>());
}

/// The sizes that a body of this kind can have.
struct BodySizes {
    std::size_t smallest = 0;
    std::size_t largest = 0;
};

std::optional<BodySizes> sizes_of(Kind kind) {
    switch (kind) {
        case Kind::join: return BodySizes{join_bytes, join_bytes};
        case Kind::request: return BodySizes{request_bytes, request_bytes};
        case Kind::hello: return BodySizes{hello_bytes, hello_bytes};
        case Kind::description:
        case Kind::state: return BodySizes{blob_head_bytes + 1, blob_head_bytes + max_piece_bytes};
        case Kind::pages: return BodySizes{pages_head_bytes + 1, pages_head_bytes + max_piece_bytes};
        case Kind::zeros: return BodySizes{zeros_bytes, zeros_bytes};
        case Kind::done: return BodySizes{done_bytes, done_bytes};
        case Kind::error: return BodySizes{error_head_bytes, error_head_bytes + max_error_text_bytes};
        case Kind::end: return BodySizes{end_bytes, end_bytes};
    }
    return std::nullopt;
}

Error corrupt(std::string text) { return Error{Errc::corrupt, std::move(text)}; }

/// Codes are numbered in the order of Errc, which is append-only, from 1.
Errc to_code(std::uint32_t number) {
    constexpr std::uint32_t count = static_cast<std::uint32_t>(Errc::io) + 1;
    return number >= 1 && number <= count ? static_cast<Errc>(number - 1) : Errc::io;
}

struct Decompressor {
    Decompressor() : context(ZSTD_createDCtx()) { GM_CHECK(context != nullptr); }
    Decompressor(const Decompressor&) = delete;
    Decompressor& operator=(const Decompressor&) = delete;
    ~Decompressor() { ZSTD_freeDCtx(context); }

    ZSTD_DCtx* context;
};

Result<void> check_greeting(std::span<const std::byte> body) {
    if (load_at<std::uint64_t>(body, 0) != magic)
        return corrupt("not the protocol of pages: no magic number");
    const auto version = load_at<std::uint32_t>(body, 8);
    if (version != pages_version)
        return Error{Errc::unsupported,
                     fmt::format("version {} of the protocol of pages; this program speaks {}", version,
                                 pages_version)};
    return {};
}

Result<std::uint32_t> flags_of(std::span<const std::byte> body, std::uint32_t known) {
    const auto flags = load_at<std::uint32_t>(body, 12);
    if ((flags & ~known) != 0)
        return Error{Errc::unsupported, fmt::format("a greeting with unknown flags ({:#x})", flags)};
    return flags;
}

Result<JoinFrame> parse_join(std::span<const std::byte> body) {
    GM_TRY(check_greeting(body));
    const std::uint32_t flags =
        GM_TRY(flags_of(body, has_zstd_bit | wants_description_bit | wants_state_bit));
    return JoinFrame{.has_zstd = (flags & has_zstd_bit) != 0,
                     .wants_description = (flags & wants_description_bit) != 0,
                     .wants_state = (flags & wants_state_bit) != 0};
}

Result<HelloFrame> parse_hello(std::span<const std::byte> body) {
    GM_TRY(check_greeting(body));
    HelloFrame hello;
    hello.has_zstd = (GM_TRY(flags_of(body, has_zstd_bit)) & has_zstd_bit) != 0;
    hello.image_bytes = load_at<std::uint64_t>(body, 16);
    std::memcpy(hello.id.data(), body.data() + 24, hello.id.size());
    const auto page_bytes = load_at<std::uint32_t>(body, 40);
    hello.description_bytes = load_at<std::uint32_t>(body, 44);
    hello.state_bytes = load_at<std::uint64_t>(body, 48);
    if (page_bytes != page_size_bytes)
        return Error{Errc::unsupported,
                     fmt::format("pages of {} bytes; this program has {}", page_bytes, page_size_bytes)};
    if (hello.image_bytes == 0 || hello.image_bytes % page_size_bytes != 0 ||
        hello.image_bytes > max_paged_image_bytes)
        return corrupt(fmt::format("an image of {} bytes; it has whole pages of {}, and {} bytes at most",
                                   hello.image_bytes, page_size_bytes, max_paged_image_bytes));
    if (hello.description_bytes > max_description_bytes)
        return corrupt(fmt::format("a description of {} bytes; the limit is {}", hello.description_bytes,
                                   max_description_bytes));
    if (hello.state_bytes > max_carried_state_bytes)
        return corrupt(
            fmt::format("a state of {} bytes; the limit is {}", hello.state_bytes, max_carried_state_bytes));
    return hello;
}

ErrorFrame parse_error(std::span<const std::byte> body) {
    ErrorFrame error{.code = to_code(load_at<std::uint32_t>(body, 0)), .text = {}};
    for (const std::byte byte : body.subspan(error_head_bytes)) {
        const char letter = static_cast<char>(byte);
        error.text += letter >= ' ' && letter <= '~' ? letter : '?';
    }
    return error;
}

}  // namespace

struct FrameParser::State {
    FrameFlow flow = FrameFlow::stream;
    std::vector<std::byte> buffer;
    std::size_t begin = 0;  ///< of what was taken and not given yet
    std::size_t filled = 0;
    std::optional<Error> failed;
    std::optional<HelloFrame> hello;
    bool has_joined = false;
    bool is_over = false;
    std::uint64_t description_left = 0;
    std::uint64_t state_left = 0;
    std::uint64_t count_pages = 0;
    StreamSum sum;
    std::unique_ptr<Decompressor> decompressor;
    std::vector<std::byte> pages;

    [[nodiscard]] Result<std::optional<PageFrame>> next();
    [[nodiscard]] Result<void> check_turn(Kind kind) const;
    [[nodiscard]] Result<PageFrame> parse(Kind kind, std::span<const std::byte> body);
    [[nodiscard]] Result<RequestFrame> parse_request(std::span<const std::byte> body) const;
    [[nodiscard]] Result<std::span<const std::byte>> parse_blob(std::span<const std::byte> body,
                                                                std::uint64_t& left) const;
    [[nodiscard]] Result<PagesFrame> parse_pages(std::span<const std::byte> body);
    [[nodiscard]] Result<std::span<const std::byte>> decompress(std::span<const std::byte> payload,
                                                                std::size_t size_bytes);
    [[nodiscard]] Result<ZerosFrame> parse_zeros(std::span<const std::byte> body);
    [[nodiscard]] Result<EndFrame> parse_end(std::span<const std::byte> body);
    [[nodiscard]] bool has_greeting() const {
        return hello.has_value() && description_left == 0 && state_left == 0;
    }
};

/// Whether a frame of this kind can come here.
Result<void> FrameParser::State::check_turn(Kind kind) const {
    const bool is_client = flow == FrameFlow::from_client;
    if (is_over) return corrupt("a frame after the last one");
    if ((kind == Kind::join || kind == Kind::request) != is_client)
        return corrupt(
            fmt::format("a frame of kind {} from the wrong side", static_cast<std::uint32_t>(kind)));
    if (is_client) {
        if ((kind == Kind::join) == has_joined)
            return corrupt(has_joined ? "a second greeting" : "a request before the greeting");
        return {};
    }
    // Who cannot serve says so at any time, also in place of a greeting.
    if (kind == Kind::error) return {};
    if (kind == Kind::hello && hello) return corrupt("a second greeting");
    if (kind != Kind::hello && !hello) return corrupt("a frame before the greeting");
    if (kind == Kind::hello) return {};
    const Kind due = description_left > 0 ? Kind::description : state_left > 0 ? Kind::state : Kind::pages;
    if (due == Kind::description || due == Kind::state) {
        if (kind == due) return {};
        return corrupt(fmt::format("{} bytes of the {} are missing", description_left + state_left,
                                   due == Kind::state ? "state" : "description"));
    }
    if (kind == Kind::description || kind == Kind::state)
        return corrupt("more of a description or state than the greeting says");
    if (kind == (flow == FrameFlow::stream ? Kind::done : Kind::end))
        return corrupt(flow == FrameFlow::stream ? "an answer in a stream" : "the end of a stream");
    return {};
}

Result<RequestFrame> FrameParser::State::parse_request(std::span<const std::byte> body) const {
    const RequestFrame request{.number = load_at<std::uint64_t>(body, 0),
                               .part = {.offset_bytes = load_at<std::uint64_t>(body, 8),
                                        .size_bytes = load_at<std::uint64_t>(body, 16)}};
    // A client's parser does not know the image; who serves it does.
    if (!is_image_part(request.part, max_paged_image_bytes))
        return corrupt(fmt::format("a request for {} bytes at {}: no whole pages", request.part.size_bytes,
                                   request.part.offset_bytes));
    return request;
}

Result<std::span<const std::byte>> FrameParser::State::parse_blob(std::span<const std::byte> body,
                                                                  std::uint64_t& left) const {
    const auto bytes = body.subspan(blob_head_bytes);
    if (bytes.size() > left) return corrupt("more of a description or state than the greeting says");
    if (sum_of(bytes) != load_at<std::uint64_t>(body, 0))
        return corrupt("a piece of a description or state has another sum than it says");
    left -= bytes.size();
    return bytes;
}

Result<std::span<const std::byte>> FrameParser::State::decompress(std::span<const std::byte> payload,
                                                                  std::size_t size_bytes) {
    if (!hello->has_zstd) return corrupt("compressed pages, which the greeting excludes");
    // One frame of RFC 8878 and nothing else: not one of the formats before it, which the library also knows.
    if (payload.size() < sizeof zstd_magic || load_at<std::uint32_t>(payload, 0) != zstd_magic ||
        ZSTD_findFrameCompressedSize(payload.data(), payload.size()) != payload.size())
        return corrupt("compressed pages that are not one frame of zstd");
    if (!decompressor) decompressor = std::make_unique<Decompressor>();
    pages.resize(max_piece_bytes);
    // It writes the announced bytes at most, and takes no other memory than the context's.
    const std::size_t count =
        ZSTD_decompressDCtx(decompressor->context, pages.data(), size_bytes, payload.data(), payload.size());
    if (ZSTD_isError(count) != 0)
        return corrupt(fmt::format("pages that cannot be decompressed to {} bytes ({})", size_bytes,
                                   ZSTD_getErrorName(count)));
    if (count != size_bytes)
        return corrupt(fmt::format("compressed pages of {} bytes, announced as {}", count, size_bytes));
    return std::span<const std::byte>{pages}.first(size_bytes);
}

Result<PagesFrame> FrameParser::State::parse_pages(std::span<const std::byte> body) {
    const auto offset_bytes = load_at<std::uint64_t>(body, 0);
    const auto count = load_at<std::uint32_t>(body, 8);
    const auto encoding = load_at<std::uint32_t>(body, 12);
    const auto sum_said = load_at<std::uint64_t>(body, 16);
    const auto payload = body.subspan(pages_head_bytes);
    const ImagePart part{.offset_bytes = offset_bytes, .size_bytes = count * page_size_bytes};
    if (part.size_bytes > max_piece_bytes || !is_image_part(part, hello->image_bytes))
        return corrupt(fmt::format("{} pages at {}: no piece of an image of {} bytes", count, offset_bytes,
                                   hello->image_bytes));
    const bool is_zstd = encoding == static_cast<std::uint32_t>(Encoding::zstd);
    if (!is_zstd && encoding != static_cast<std::uint32_t>(Encoding::raw))
        return corrupt(fmt::format("pages in an unknown encoding ({})", encoding));
    if (is_zstd ? payload.size() >= part.size_bytes : payload.size() != part.size_bytes)
        return corrupt(
            fmt::format("{} pages in {} bytes{}", count, payload.size(), is_zstd ? ", compressed" : ""));
    auto bytes = payload;
    if (is_zstd) bytes = GM_TRY(decompress(payload, static_cast<std::size_t>(part.size_bytes)));
    const std::uint64_t sum_found = sum_of(bytes);
    if (sum_found != sum_said)
        return corrupt(fmt::format("{} pages at {} have the sum {:016x}, and say {:016x}", count,
                                   offset_bytes, sum_found, sum_said));
    count_pages += count;
    sum.add(part, sum_found);
    return PagesFrame{.offset_bytes = offset_bytes, .pages = bytes};
}

Result<ZerosFrame> FrameParser::State::parse_zeros(std::span<const std::byte> body) {
    const ImagePart part{.offset_bytes = load_at<std::uint64_t>(body, 0),
                         .size_bytes = load_at<std::uint64_t>(body, 8)};
    if (!is_image_part(part, hello->image_bytes))
        return corrupt(fmt::format("zeros of {} bytes at {}: no part of an image of {} bytes",
                                   part.size_bytes, part.offset_bytes, hello->image_bytes));
    sum.add(part, 0);
    return ZerosFrame{part};
}

Result<EndFrame> FrameParser::State::parse_end(std::span<const std::byte> body) {
    const EndFrame end{.count_pages = load_at<std::uint64_t>(body, 0),
                       .sum = load_at<std::uint64_t>(body, 8)};
    if (end.count_pages != count_pages || end.sum != sum.value())
        return corrupt(fmt::format("a stream of {} pages with the sum {:016x} says at its end {} and {:016x}",
                                   count_pages, sum.value(), end.count_pages, end.sum));
    is_over = true;
    return end;
}

Result<PageFrame> FrameParser::State::parse(Kind kind, std::span<const std::byte> body) {
    switch (kind) {
        case Kind::join: {
            const JoinFrame join = GM_TRY(parse_join(body));
            has_joined = true;
            return PageFrame{join};
        }
        case Kind::request: return PageFrame{GM_TRY(parse_request(body))};
        case Kind::hello:
            hello = GM_TRY(parse_hello(body));
            description_left = hello->description_bytes;
            state_left = hello->state_bytes;
            return PageFrame{*hello};
        case Kind::description:
            return PageFrame{DescriptionFrame{GM_TRY(parse_blob(body, description_left))}};
        case Kind::state: return PageFrame{StateFrame{GM_TRY(parse_blob(body, state_left))}};
        case Kind::pages: return PageFrame{GM_TRY(parse_pages(body))};
        case Kind::zeros: return PageFrame{GM_TRY(parse_zeros(body))};
        case Kind::done: return PageFrame{DoneFrame{load_at<std::uint64_t>(body, 0)}};
        case Kind::error: is_over = true; return PageFrame{parse_error(body)};
        case Kind::end: return PageFrame{GM_TRY(parse_end(body))};
    }
    return corrupt("a frame of an unknown kind");
}

Result<std::optional<PageFrame>> FrameParser::State::next() {
    const auto bytes = std::span<const std::byte>{buffer}.subspan(begin, filled - begin);
    if (bytes.size() < frame_head_bytes) return std::optional<PageFrame>{};
    const auto kind = static_cast<Kind>(load_at<std::uint32_t>(bytes, 0));
    const std::size_t body_bytes = load_at<std::uint32_t>(bytes, 4);
    const auto sizes = sizes_of(kind);
    if (!sizes)
        return corrupt(fmt::format("a frame of the unknown kind {}", static_cast<std::uint32_t>(kind)));
    GM_TRY(check_turn(kind));
    if (body_bytes < sizes->smallest || body_bytes > sizes->largest)
        return corrupt(fmt::format("a frame of kind {} with {} bytes; it has {} to {}",
                                   static_cast<std::uint32_t>(kind), body_bytes, sizes->smallest,
                                   sizes->largest));
    if (bytes.size() - frame_head_bytes < body_bytes) return std::optional<PageFrame>{};
    PageFrame frame = GM_TRY(parse(kind, bytes.subspan(frame_head_bytes, body_bytes)));
    begin += frame_head_bytes + body_bytes;
    return std::optional<PageFrame>{std::move(frame)};
}

FrameParser::FrameParser(FrameFlow flow) : state_(std::make_unique<State>()) {
    // A client's frames are short; there are many clients, and they are not trusted with more.
    constexpr std::size_t client_bytes = 4096;
    state_->flow = flow;
    state_->buffer.resize(flow == FrameFlow::from_client ? client_bytes : 2 * max_frame_bytes);
}
FrameParser::FrameParser(FrameParser&&) noexcept = default;
FrameParser& FrameParser::operator=(FrameParser&&) noexcept = default;
FrameParser::~FrameParser() = default;

std::span<std::byte> FrameParser::room() {
    State& state = *state_;
    if (state.begin > 0) {
        std::memmove(state.buffer.data(), state.buffer.data() + state.begin, state.filled - state.begin);
        state.filled -= state.begin;
        state.begin = 0;
    }
    return std::span{state.buffer}.subspan(state.filled);
}

void FrameParser::take(std::size_t count_bytes) {
    GM_CHECK(count_bytes <= state_->buffer.size() - state_->filled);
    state_->filled += count_bytes;
}

Result<std::optional<PageFrame>> FrameParser::next() {
    if (state_->failed) return *state_->failed;
    auto frame = state_->next();
    if (!frame) state_->failed = frame.error();
    return frame;
}

bool FrameParser::has_part() const { return state_->filled > state_->begin; }
bool FrameParser::has_greeting() const { return state_->has_greeting(); }

void StreamSum::add(ImagePart part, std::uint64_t sum) {
    const std::array<std::uint64_t, 4> words{swap_unless_little(value_),
                                             swap_unless_little(part.offset_bytes),
                                             swap_unless_little(part.size_bytes), swap_unless_little(sum)};
    value_ = sum_of(std::as_bytes(std::span{words}));
}

namespace {

/// Appends a frame's head and so many bytes for its body; returns the body.
std::span<std::byte> append_body(FrameBytes& out, Kind kind, std::size_t body_bytes) {
    const std::size_t begin = out.size();
    out.resize(begin + frame_head_bytes + body_bytes);
    const auto frame = std::span{out}.subspan(begin);
    store_little(frame.subspan<0, 4>(), static_cast<std::uint32_t>(kind));
    store_little(frame.subspan<4, 4>(), static_cast<std::uint32_t>(body_bytes));
    return frame.subspan(frame_head_bytes);
}

template <typename T>
void store_at(std::span<std::byte> bytes, std::size_t offset, T value) {
    store_little(bytes.subspan(offset).template first<sizeof(T)>(), value);
}

void append_blob(FrameBytes& out, Kind kind, std::span<const std::byte> bytes) {
    GM_CHECK(!bytes.empty() && bytes.size() <= max_piece_bytes);
    const auto body = append_body(out, kind, blob_head_bytes + bytes.size());
    store_at(body, 0, sum_of(bytes));
    std::ranges::copy(bytes, body.begin() + blob_head_bytes);
}

bool is_zeros(std::span<const std::byte> page) {
    constexpr std::array<std::byte, page_size_bytes> zeros{};
    return std::memcmp(page.data(), zeros.data(), zeros.size()) == 0;
}

std::span<const std::byte> page_at(std::span<const std::byte> pages, std::size_t offset) {
    return pages.subspan(offset, page_size_bytes);
}

}  // namespace

void append_frame(FrameBytes& out, const JoinFrame& frame) {
    const auto body = append_body(out, Kind::join, join_bytes);
    store_at(body, 0, magic);
    store_at(body, 8, pages_version);
    store_at(body, 12,
             (frame.has_zstd ? has_zstd_bit : 0U) | (frame.wants_description ? wants_description_bit : 0U) |
                 (frame.wants_state ? wants_state_bit : 0U));
}

void append_frame(FrameBytes& out, const RequestFrame& frame) {
    const auto body = append_body(out, Kind::request, request_bytes);
    store_at(body, 0, frame.number);
    store_at(body, 8, frame.part.offset_bytes);
    store_at(body, 16, frame.part.size_bytes);
}

void append_frame(FrameBytes& out, const HelloFrame& frame) {
    const auto body = append_body(out, Kind::hello, hello_bytes);
    store_at(body, 0, magic);
    store_at(body, 8, pages_version);
    store_at(body, 12, frame.has_zstd ? has_zstd_bit : 0U);
    store_at(body, 16, frame.image_bytes);
    std::ranges::copy(frame.id, body.begin() + 24);
    store_at(body, 40, static_cast<std::uint32_t>(page_size_bytes));
    store_at(body, 44, frame.description_bytes);
    store_at(body, 48, frame.state_bytes);
}

void append_frame(FrameBytes& out, const DescriptionFrame& frame) {
    append_blob(out, Kind::description, frame.bytes);
}

void append_frame(FrameBytes& out, const StateFrame& frame) { append_blob(out, Kind::state, frame.bytes); }

void append_frame(FrameBytes& out, const DoneFrame& frame) {
    store_at(append_body(out, Kind::done, done_bytes), 0, frame.number);
}

void append_frame(FrameBytes& out, const ErrorFrame& frame) {
    const auto text =
        std::as_bytes(std::span{frame.text}.first(std::min(frame.text.size(), max_error_text_bytes)));
    const auto body = append_body(out, Kind::error, error_head_bytes + text.size());
    store_at(body, 0, static_cast<std::uint32_t>(frame.code) + 1);
    std::ranges::copy(text, body.begin() + error_head_bytes);
}

void append_frame(FrameBytes& out, const EndFrame& frame) {
    const auto body = append_body(out, Kind::end, end_bytes);
    store_at(body, 0, frame.count_pages);
    store_at(body, 8, frame.sum);
}

ErrorFrame to_error_frame(const Error& error) { return {.code = error.code(), .text = error.message()}; }

struct PageEncoder::Compressor {
    Compressor() : context(ZSTD_createCCtx()) { GM_CHECK(context != nullptr); }
    Compressor(const Compressor&) = delete;
    Compressor& operator=(const Compressor&) = delete;
    ~Compressor() { ZSTD_freeCCtx(context); }

    ZSTD_CCtx* context;
};

PageEncoder::PageEncoder() = default;
PageEncoder::PageEncoder(PageEncoder&&) noexcept = default;
PageEncoder& PageEncoder::operator=(PageEncoder&&) noexcept = default;
PageEncoder::~PageEncoder() = default;

void PageEncoder::append_pages(FrameBytes& out, std::uint64_t offset_bytes, std::span<const std::byte> pages,
                               int zstd_level) {
    GM_CHECK(pages.size() % page_size_bytes == 0);
    for (std::size_t at = 0; at < pages.size();) {
        const bool has_zeros = is_zeros(page_at(pages, at));
        std::size_t next = at + page_size_bytes;
        while (next < pages.size() && is_zeros(page_at(pages, next)) == has_zeros &&
               (has_zeros || next - at < max_piece_bytes))
            next += page_size_bytes;
        if (has_zeros) {
            append_zeros(out, {.offset_bytes = offset_bytes + at, .size_bytes = next - at});
        } else {
            append_piece(out, offset_bytes + at, pages.subspan(at, next - at), zstd_level);
        }
        at = next;
    }
}

void PageEncoder::append_piece(FrameBytes& out, std::uint64_t offset_bytes, std::span<const std::byte> pages,
                               int zstd_level) {
    const std::size_t begin = out.size();
    auto body = append_body(out, Kind::pages, pages_head_bytes + pages.size());
    std::size_t count = 0;
    if (zstd_level > 0) {
        if (!compressor_) compressor_ = std::make_unique<Compressor>();
        // Room for one byte less than the pages: what does not become smaller is an error here, and goes raw.
        count = ZSTD_compressCCtx(compressor_->context, body.data() + pages_head_bytes, pages.size() - 1,
                                  pages.data(), pages.size(), zstd_level);
        if (ZSTD_isError(count) != 0) count = 0;
    }
    if (count > 0) {
        const std::size_t body_bytes = pages_head_bytes + count;
        out.resize(begin + frame_head_bytes + body_bytes);
        store_at(std::span{out}.subspan(begin), 4, static_cast<std::uint32_t>(body_bytes));
        body = std::span{out}.subspan(begin + frame_head_bytes);
    } else {
        std::ranges::copy(pages, body.begin() + pages_head_bytes);
    }
    const std::uint64_t sum = sum_of(pages);
    store_at(body, 0, offset_bytes);
    store_at(body, 8, static_cast<std::uint32_t>(pages.size() / page_size_bytes));
    store_at(body, 12, static_cast<std::uint32_t>(count > 0 ? Encoding::zstd : Encoding::raw));
    store_at(body, 16, sum);
    count_pages_ += pages.size() / page_size_bytes;
    sum_.add({.offset_bytes = offset_bytes, .size_bytes = pages.size()}, sum);
}

void PageEncoder::append_zeros(FrameBytes& out, ImagePart part) {
    const auto body = append_body(out, Kind::zeros, zeros_bytes);
    store_at(body, 0, part.offset_bytes);
    store_at(body, 8, part.size_bytes);
    sum_.add(part, 0);
}

Result<void> check_zstd_level(int level) {
    if (level >= 0 && level <= max_zstd_level) return {};
    return Error{Errc::invalid_argument,
                 fmt::format("compression level {}; it is 0 (none) to {}", level, max_zstd_level)};
}

bool is_image_part(ImagePart part, std::uint64_t image_bytes) {
    return part.size_bytes > 0 && part.offset_bytes % page_size_bytes == 0 &&
           part.size_bytes % page_size_bytes == 0 && part.offset_bytes <= image_bytes &&
           part.size_bytes <= image_bytes - part.offset_bytes;
}

Result<ImageId> to_image_id(std::string_view text) {
    ImageId id{};
    bool is_good = text.size() == 2 * id.size();
    for (std::size_t i = 0; is_good && i < id.size(); ++i) {
        unsigned value = 0;
        const char* const at = text.data() + 2 * i;
        const auto [rest, error] = std::from_chars(at, at + 2, value, 16);
        is_good = error == std::errc{} && rest == at + 2;
        id.at(i) = static_cast<std::byte>(value);
    }
    if (!is_good)
        return Error{Errc::invalid_argument, fmt::format("'{}' is no id of 32 hexadecimal digits", text)};
    return id;
}

std::string to_string(const ImageId& id) {
    std::string text;
    for (const std::byte byte : id) text += fmt::format("{:02x}", static_cast<unsigned>(byte));
    return text;
}

}  // namespace guestmem
