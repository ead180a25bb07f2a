// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/paging/page_runs.hpp"
#include "guestmem/mem/paging/page_source.hpp"
#include "guestmem/mem/template/page_sum.hpp"
#include "guestmem/sys/fd.hpp"

/// The image of a template: guest memory as a sparse file, and a file of sums beside it.
///
/// Concepts: page N of the image stands at N pages, and its sum at N words of 8 bytes, little endian. Pages of zeros
/// are holes in both. A compressed image has its pages in another way (compressed_image.hpp), and the same sums. An
/// image with a base is a difference: it has the pages whose bytes are not the base's, and knows which they are.
/// Contract: the writer takes pieces in ascending order, whole pages, and copies each page before it looks at it: a
/// guest that still writes gives a page of some moment with a sum that fits it. Nothing is durable before finish().
/// Threads: one at a time.
/// Cost: a page that is written is read, summed and written once; holes of a source file cost nothing. With a base,
/// as many of the base's pages are read.
/// Example:
///     ImageWriter writer{image, sums};
///     GM_TRY(writer.add_bytes(0, memory));
///     const ImageSummary summary = GM_TRY(writer.finish(image_bytes));

namespace guestmem {

class CompressedImageWriter;

using ImageProgress = std::function<void(std::uint64_t done_bytes)>;

struct ImageSummary {
    std::uint64_t data_pages = 0;
    std::uint64_t sum_of_sums = 0;
};

struct ImageWriterOptions {
    CompressedImageWriter* compressed = nullptr;  ///< where pages go instead of the image's file
    PageSource* base = nullptr;                   ///< of a difference
};

class ImageWriter {
public:
    /// Two empty files, which stay open for longer than the writer.
    ImageWriter(FdView image, FdView sums, ImageWriterOptions options = {})
        : image_(image), sums_(sums), options_(options) {}

    [[nodiscard]] Result<void> add_bytes(std::uint64_t image_offset_bytes, std::span<const std::byte> bytes);
    [[nodiscard]] Result<void> add_file(std::uint64_t image_offset_bytes, FdView file,
                                        std::uint64_t file_offset_bytes, std::uint64_t size_bytes);
    /// In a difference, zeros are where the base has data.
    [[nodiscard]] Result<void> add_zeros(ImagePart part);
    /// Pages from elsewhere, which come in ascending order without gaps.
    [[nodiscard]] Result<void> add_source(ImagePart part, PageSource& source,
                                          const ImageProgress& progress = {});
    /// Where the next piece may begin.
    [[nodiscard]] std::uint64_t written_to() const { return written_to_; }
    /// Of a difference: the pages that it has.
    [[nodiscard]] const PageRuns& own_pages() const { return own_pages_; }
    /// Gives both files their sizes and waits until they are on the disk.
    [[nodiscard]] Result<ImageSummary> finish(std::uint64_t image_bytes);

private:
    class FromSource;
    [[nodiscard]] Result<void> add_buffered(std::uint64_t image_offset_bytes,
                                            std::span<const std::byte> bytes);
    [[nodiscard]] Result<void> find_own_pages(std::uint64_t image_offset_bytes,
                                              std::span<const std::byte> bytes);
    [[nodiscard]] Result<void> store(std::uint64_t image_offset_bytes, std::span<const std::byte> pages);

    FdView image_;
    FdView sums_;
    ImageWriterOptions options_;
    PageRuns own_pages_;
    std::uint64_t written_to_ = 0;
    std::uint64_t data_pages_ = 0;
    SumOfSums sum_of_sums_;
    std::vector<std::byte> buffer_;
    std::vector<std::byte> sum_bytes_;
    std::vector<std::byte> base_bytes_;
    std::vector<bool> is_own_;  ///< of the pages in the buffer: to be stored
};

/// Gives a part of a raw image to the sink; its sums are not looked at.
[[nodiscard]] Result<void> read_raw_image(FdView image, ImagePart part, PageSink& sink);

}  // namespace guestmem
