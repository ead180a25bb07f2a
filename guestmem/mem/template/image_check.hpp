// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/paging/page_source.hpp"
#include "guestmem/mem/template/image.hpp"
#include "guestmem/sys/fd.hpp"

/// Whether the pages of an image are those of its sums.
///
/// Concepts: the file of sums has a word for each page, 0 for zeros and for pages that a difference does not have.
/// Contract: errors are of the reading; what does not fit is in the result. Where both files have holes nothing is
/// read.
/// Threads: one at a time.
/// Example:
///     const ImageCheck check = GM_TRY(check_image(image, sums, image_bytes));
///     for (const BadPage& page : check.bad) tell(page.image_offset_bytes);

namespace guestmem {

class CompressedImageReader;

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

/// Compares pages with the file of sums.
class SumComparer {
public:
    explicit SumComparer(FdView sums) : sums_(sums) {}
    /// A page and its two sums, unless both are 0.
    using Each = std::function<void(std::uint64_t page, std::uint64_t expected, std::uint64_t found)>;

    [[nodiscard]] Result<void> compare_pages(std::uint64_t image_offset_bytes,
                                             std::span<const std::byte> pages, const Each& each);
    [[nodiscard]] Result<void> compare_zeros(ImagePart part, const Each& each);

private:
    [[nodiscard]] Result<void> read_words(std::uint64_t first_page, std::uint64_t count_pages);

    FdView sums_;
    std::vector<std::byte> words_;
};

/// Reads all of an image and its sums.
[[nodiscard]] Result<ImageCheck> check_image(FdView image, FdView sums, std::uint64_t image_bytes,
                                             const ImageProgress& progress = {});
/// A chunk that cannot be read is bad as a whole.
[[nodiscard]] Result<ImageCheck> check_image(CompressedImageReader& image, FdView sums,
                                             std::uint64_t image_bytes, const ImageProgress& progress = {});

}  // namespace guestmem
