// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/stream_writer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "guestmem/mem/paging/part_set.hpp"
#include "guestmem/sys/scatter_io.hpp"

namespace guestmem {
namespace {

/// Frames are written when there are so many bytes of them.
constexpr std::size_t enough_bytes = std::size_t{256} << 10;
/// Where a source has zeros only it is asked for more at once, and for so much at most: behind zeros may come pages,
/// and a source has one patience for all that it is asked for at once.
constexpr std::uint64_t largest_window_bytes = std::uint64_t{64} << 20;

class FrameOutput {
public:
    explicit FrameOutput(FdView out) : out_(out) {}

    [[nodiscard]] FrameBytes& bytes() { return bytes_; }
    [[nodiscard]] std::uint64_t written_bytes() const { return written_bytes_; }
    [[nodiscard]] Result<void> flush_if_enough() {
        return bytes_.size() < enough_bytes ? Result<void>{} : flush();
    }
    [[nodiscard]] Result<void> flush() {
        for (std::size_t at = 0; at < bytes_.size();) {
            const std::array slices{IoSlice{bytes_.data() + at, bytes_.size() - at}};
            const std::size_t count =
                GM_TRY_CONTEXT(write_scattered(out_, slices), "write a stream of pages");
            at += count;
            written_bytes_ += count;
        }
        bytes_.clear();
        return {};
    }

private:
    FdView out_;
    FrameBytes bytes_;
    std::uint64_t written_bytes_ = 0;
};

/// Writes each page once, whatever the source gives twice.
class StreamSink : public PageSink {
public:
    StreamSink(FrameOutput& output, int zstd_level) : output_(&output), zstd_level_(zstd_level) {}

    [[nodiscard]] Result<void> take_pages(std::uint64_t offset_bytes,
                                          std::span<const std::byte> pages) override {
        return add(
            {.offset_bytes = offset_bytes, .size_bytes = pages.size()}, [&](ImagePart part) -> Result<void> {
                const auto bytes = pages.subspan(static_cast<std::size_t>(part.offset_bytes - offset_bytes),
                                                 static_cast<std::size_t>(part.size_bytes));
                GM_TRY(flush_zeros());
                encoder_.append_pages(output_->bytes(), part.offset_bytes, bytes, zstd_level_);
                return output_->flush_if_enough();
            });
    }

    [[nodiscard]] Result<void> take_zeros(ImagePart part) override {
        return add(part, [&](ImagePart piece) -> Result<void> {
            if (zeros_.offset_bytes + zeros_.size_bytes != piece.offset_bytes) GM_TRY(flush_zeros());
            if (zeros_.size_bytes == 0) zeros_.offset_bytes = piece.offset_bytes;
            zeros_.size_bytes += piece.size_bytes;
            return {};
        });
    }

    [[nodiscard]] Result<void> flush_zeros() {
        if (zeros_.size_bytes == 0) return {};
        encoder_.append_zeros(output_->bytes(), std::exchange(zeros_, ImagePart{}));
        return output_->flush_if_enough();
    }

    [[nodiscard]] const PartSet& written() const { return written_; }
    [[nodiscard]] EndFrame end_frame() const { return encoder_.end_frame(); }

private:
    template <typename Append>
    [[nodiscard]] Result<void> add(ImagePart part, Append&& append) {
        if (!is_image_part(part, max_paged_image_bytes))
            return Error{Errc::corrupt, fmt::format("a source of pages gives {} bytes at {}: no whole pages",
                                                    part.size_bytes, part.offset_bytes)};
        while (const auto missing = written_.first_missing(part)) {
            GM_TRY(append(*missing));
            GM_TRY(written_.add(*missing));
        }
        return {};
    }

    FrameOutput* output_;
    int zstd_level_;
    PageEncoder encoder_;
    PartSet written_;
    ImagePart zeros_;
};

Result<void> write_pages(PageSource& source, StreamSink& sink, const StreamProgress& progress) {
    const ImagePart image{.offset_bytes = 0, .size_bytes = source.size_bytes()};
    std::uint64_t window_bytes = max_part_bytes;
    while (const auto missing = sink.written().first_missing(image)) {
        const ImagePart wanted{.offset_bytes = missing->offset_bytes,
                               .size_bytes = std::min(missing->size_bytes, window_bytes)};
        const std::uint64_t pages_before = sink.end_frame().count_pages;
        GM_TRY(source.fetch(wanted, sink));
        if (sink.written().first_missing(wanted))
            return Error{Errc::io, fmt::format("a source of pages has not given all of {} bytes at {}",
                                               wanted.size_bytes, wanted.offset_bytes)};
        const bool has_zeros_only = sink.end_frame().count_pages == pages_before;
        window_bytes = has_zeros_only ? std::min(window_bytes * 2, largest_window_bytes) : max_part_bytes;
        if (progress) progress(sink.written().size_bytes());
    }
    return sink.flush_zeros();
}

Result<void> write_greeting(const PageOffer& offer, std::uint64_t image_bytes, FrameOutput& output) {
    GreetingWriter greeting{
        offer, image_bytes, {.has_zstd = true, .wants_description = true, .wants_state = true}};
    while (!greeting.is_done()) {
        GM_TRY(greeting.append_next(output.bytes()));
        GM_TRY(output.flush_if_enough());
    }
    return {};
}

}  // namespace

Result<StreamTotals> write_stream(FdView out, PageSource& source, const PageOffer& offer,
                                  const StreamProgress& progress) {
    GM_TRY(check_offer(offer, source.size_bytes()));
    FrameOutput output{out};
    StreamSink sink{output, offer.zstd_level};
    auto written = write_greeting(offer, source.size_bytes(), output);
    if (written) written = write_pages(source, sink, progress);
    if (!written) {
        // The reader is told; when it is gone, or does not read, the first error is the one that says so.
        append_frame(output.bytes(), to_error_frame(written.error()));
        static_cast<void>(output.flush().has_value());
        return std::move(written).error();
    }
    append_frame(output.bytes(), sink.end_frame());
    GM_TRY(output.flush());
    return StreamTotals{.count_pages = sink.end_frame().count_pages, .written_bytes = output.written_bytes()};
}

}  // namespace guestmem
