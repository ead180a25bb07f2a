// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/template/page_sum.hpp"
#include "guestmem/sys/fd.hpp"

/// The image of a template: guest memory as a sparse file, and a file of sums beside it.
///
/// Concepts: page N of the image stands at N pages, and its sum at N words of 8 bytes, little endian. Pages of zeros
/// are holes in both.
/// Contract: the writer takes pieces in ascending order, whole pages, and copies each page before it looks at it: a
/// guest that still writes gives a page of some moment with a sum that fits it. Nothing is durable before finish().
/// Threads: one at a time.
/// Cost: a page that is written is read, summed and written once; holes of a source file cost nothing.
/// Example:
///     ImageWriter writer{image, sums};
///     GM_TRY(writer.add_bytes(0, memory));
///     const ImageSummary summary = GM_TRY(writer.finish(image_bytes));

namespace guestmem {

struct ImageSummary {
    std::uint64_t data_pages = 0;
    std::uint64_t sum_of_sums = 0;
};

class ImageWriter {
public:
    /// Two empty files, which stay open for longer than the writer.
    ImageWriter(FdView image, FdView sums) : image_(image), sums_(sums) {}

    [[nodiscard]] Result<void> add_bytes(std::uint64_t image_offset_bytes, std::span<const std::byte> bytes);
    [[nodiscard]] Result<void> add_file(std::uint64_t image_offset_bytes, FdView file,
                                        std::uint64_t file_offset_bytes, std::uint64_t size_bytes);
    /// Gives both files their sizes and waits until they are on the disk.
    [[nodiscard]] Result<ImageSummary> finish(std::uint64_t image_bytes);

private:
    [[nodiscard]] Result<void> add_buffered(std::uint64_t image_offset_bytes,
                                            std::span<const std::byte> bytes);

    FdView image_;
    FdView sums_;
    std::uint64_t written_to_ = 0;
    std::uint64_t data_pages_ = 0;
    SumOfSums sum_of_sums_;
    std::vector<std::byte> buffer_;
    std::vector<std::byte> sum_bytes_;
};

/// A page that is not what it was, or the first of many.
struct BadPage {
    std::uint64_t image_offset_bytes = 0;
    std::uint64_t sum = 0;       ///< of what stands there
    std::uint64_t expected = 0;  ///< in the file of sums
};

struct ImageCheck {
    std::vector<BadPage> bad;  ///< the first max_told of them
    std::uint64_t count_bad = 0;
    ImageSummary found;  ///< of the file of sums, whether the pages fit or not
    static constexpr std::size_t max_told = 100;
};
using ImageProgress = std::function<void(std::uint64_t done_bytes)>;

/// Reads all of an image and its sums. Errors are of the reading; what does not fit is in the result.
[[nodiscard]] Result<ImageCheck> check_image(FdView image, FdView sums, std::uint64_t image_bytes,
                                             const ImageProgress& progress = {});

}  // namespace guestmem
