// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/page_runs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "guestmem/base/endian.hpp"

namespace guestmem {

namespace {

constexpr std::size_t word_bytes = sizeof(std::uint64_t);

Error bad_run(std::size_t number, PageRun run, const std::string& why) {
    return Error{Errc::corrupt,
                 fmt::format("page runs: run {}, {} pages from page {}: {}; the file of runs is damaged",
                             number, run.count, run.first, why)};
}

}  // namespace

void PageRuns::add(std::uint64_t first, std::uint64_t count) {
    GM_CHECK(count <= std::numeric_limits<std::uint64_t>::max() - first);
    if (count == 0) return;
    GM_CHECK(runs_.empty() || first >= runs_.back().behind());
    if (!runs_.empty() && first == runs_.back().behind()) {
        runs_.back().count += count;
    } else {
        runs_.push_back({.first = first, .count = count});
    }
    count_pages_ += count;
}

std::size_t PageRuns::find(std::uint64_t page) const {
    const auto found = std::ranges::upper_bound(runs_, page, {}, &PageRun::behind);
    return static_cast<std::size_t>(found - runs_.begin());
}

PagePiece PageRuns::piece_at(std::size_t run, std::uint64_t page, std::uint64_t behind) const {
    if (run == runs_.size()) return {.behind = behind, .is_in = false};
    const PageRun& at = runs_[run];
    if (at.first <= page) return {.behind = std::min(at.behind(), behind), .is_in = true};
    return {.behind = std::min(at.first, behind), .is_in = false};
}

bool PageRuns::contains(std::uint64_t page) const {
    const std::size_t run = find(page);
    return run < runs_.size() && runs_[run].first <= page;
}

PagePiece PageRuns::next(std::uint64_t page, std::uint64_t behind) const {
    GM_CHECK(page < behind);
    return piece_at(find(page), page, behind);
}

std::vector<std::byte> PageRuns::to_bytes() const {
    std::vector<std::byte> bytes(runs_.size() * page_run_bytes);
    std::span<std::byte> rest{bytes};
    for (const PageRun& run : runs_) {
        store_little<std::uint64_t>(rest.first<word_bytes>(), run.first);
        store_little<std::uint64_t>(rest.subspan<word_bytes, word_bytes>(), run.count);
        rest = rest.subspan(page_run_bytes);
    }
    return bytes;
}

Result<PageRuns> parse_page_runs(std::span<const std::byte> bytes, std::uint64_t image_pages) {
    if (bytes.size() % page_run_bytes != 0)
        return Error{Errc::corrupt,
                     fmt::format("page runs: {} bytes are no whole runs of {} bytes: the file of runs "
                                 "was cut, or is another file",
                                 bytes.size(), page_run_bytes)};
    const std::size_t count_runs = bytes.size() / page_run_bytes;
    if (count_runs > max_page_runs)
        return Error{Errc::out_of_range,
                     fmt::format("page runs: {} runs are more than {}: make a difference to "
                                 "another parent, or a whole template",
                                 count_runs, max_page_runs)};
    PageRuns runs;
    std::uint64_t behind = 0;
    for (std::size_t number = 0; number < count_runs; ++number) {
        const auto at = bytes.subspan(number * page_run_bytes, page_run_bytes);
        const PageRun run{.first = load_little<std::uint64_t>(at.first<word_bytes>()),
                          .count = load_little<std::uint64_t>(at.subspan<word_bytes, word_bytes>())};
        if (run.count == 0) return bad_run(number, run, "it is empty");
        if (run.first > image_pages || run.count > image_pages - run.first)
            return bad_run(number, run, fmt::format("the image has {} pages", image_pages));
        if (number != 0 && run.first < behind)
            return bad_run(number, run,
                           fmt::format("the run before it ends before page {}: they overlap, or are not "
                                       "in ascending order",
                                       behind));
        if (number != 0 && run.first == behind)
            return bad_run(number, run, "it touches the run before it: the two have to be one");
        runs.add(run.first, run.count);
        behind = run.behind();
    }
    return runs;
}

}  // namespace guestmem
