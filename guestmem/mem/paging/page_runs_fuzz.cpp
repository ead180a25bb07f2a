// SPDX-License-Identifier: Apache-2.0
/// Fuzzes page_runs.hpp: any bytes as the runs of an image of 2^16 pages, and of one as large as there can be.
///
/// Asserts: what is taken is in order and within the image, gives the same bytes again, and splits any part into pieces
/// that agree with the runs; what is not is an error with a sentence.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/paging/page_runs.hpp"

namespace {

void split(const guestmem::PageRuns& runs, std::uint64_t first, std::uint64_t behind) {
    std::uint64_t at = first;
    std::uint64_t count_in = 0;
    bool was_in = false;
    runs.split(first, behind, [&](std::uint64_t from, std::uint64_t to, bool is_in) {
        GM_CHECK(from == at && from < to && to <= behind);
        GM_CHECK(from == first || is_in != was_in);
        GM_CHECK(runs.contains(from) == is_in && runs.contains(to - 1) == is_in);
        GM_CHECK(runs.next(from, behind) == (guestmem::PagePiece{.behind = to, .is_in = is_in}));
        if (is_in) count_in += to - from;
        at = to;
        was_in = is_in;
    });
    GM_CHECK(at == behind);
    if (first == 0 && behind == std::numeric_limits<std::uint64_t>::max())
        GM_CHECK(count_in == runs.count_pages());
}

void read(std::span<const std::byte> bytes, std::uint64_t image_pages) {
    const auto parsed = guestmem::parse_page_runs(bytes, image_pages);
    if (!parsed) {
        GM_CHECK(!parsed.error().message().empty());
        return;
    }
    const std::vector<std::byte> again = parsed->to_bytes();
    GM_CHECK(again.size() == bytes.size());
    GM_CHECK(bytes.empty() || std::memcmp(again.data(), bytes.data(), bytes.size()) == 0);
    guestmem::PageRuns added;
    for (const guestmem::PageRun& run : parsed->runs()) {
        GM_CHECK(run.count != 0 && run.first < image_pages && run.count <= image_pages - run.first);
        added.add(run.first, run.count);
    }
    GM_CHECK(added == *parsed);
    split(*parsed, 0, std::numeric_limits<std::uint64_t>::max());
    for (const guestmem::PageRun& run : parsed->runs()) {
        split(*parsed, run.first / 2, run.behind());
        split(*parsed, run.behind() - 1, image_pages);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto bytes = std::as_bytes(std::span{data, size});
    read(bytes, std::uint64_t{1} << 16);
    read(bytes, std::numeric_limits<std::uint64_t>::max());
    return 0;
}
