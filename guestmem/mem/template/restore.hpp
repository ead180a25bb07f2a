// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/paging/page_source.hpp"
#include "guestmem/mem/paging/pager.hpp"
#include "guestmem/mem/region.hpp"
#include "guestmem/mem/template/manifest.hpp"
#include "guestmem/sys/written_pages.hpp"

/// How a VM gets the memory of a template: by mapping the image, by copying, or page by page.
///
/// Concepts: a mode is who takes the pages, and when; where they come from is a PageSource, which may be a template
/// (template_source.hpp), a server (remote_source.hpp) or a stream (stream_source.hpp). map needs the image's file:
/// the kernel takes the pages. copy has all of them before the VM runs. lazy runs at once: a page comes when it is
/// touched, and others are fetched meanwhile.
/// Contract: what a fork has read is its own for good, also when the source goes. A lazy fork whose source fails has
/// poisoned pages: accesses are errors, and Fork::pager says why (pager.hpp).
/// Threads: any.
/// Cost: copy moves every page that is no zeros; zeros are not touched.
/// Example:
///     auto server = GM_TRY(RemoteSource::connect(path));
///     const Manifest manifest = GM_TRY(parse_manifest(server->description()));
///     const Fork fork = GM_TRY(restore_lazily(manifest, std::move(server), {}));

namespace guestmem {

enum class RestoreMode : std::uint8_t { map, copy, lazy };

[[nodiscard]] std::string_view to_string(RestoreMode mode);

/// The memory of a new VM.
struct Fork {
    Fork() = default;
    Fork(Fork&&) = default;
    /// What it was goes as by the destructor: a watch that outlived its region would end that of who maps there next.
    Fork& operator=(Fork&& other) noexcept;
    ~Fork() = default;

    std::string generation;  ///< of this fork alone: 32 hexadecimal digits, for vmgenid and the like
    TemplateId of;           ///< whose pages it began with
    RestoreMode mode = RestoreMode::map;
    std::vector<std::shared_ptr<const Region>> regions;
    std::shared_ptr<Pager> pager = nullptr;  ///< of a lazy one: its health and what it has fetched
    /// Of one whose writes are watched: for each region, nothing for ROM. They go before the regions.
    std::vector<WriteWatch> watches = {};
};

/// Of lazy memory; pager.hpp has more about each.
struct LazyOptions {
    std::vector<std::uint64_t> ahead = {};  ///< pages to fetch first: a working set
    bool is_filled = false;                 ///< fetch everything, so that the source can go
    bool is_recorded = false;               ///< note the first touches: a working set to be
    std::chrono::milliseconds patience{5000};
    std::function<void(const Error&)> on_failure = nullptr;
};

struct ForkOptions {
    RestoreMode mode = RestoreMode::map;
    bool is_write_watched = false;  ///< of a mapped one; Linux 6.7
    LazyOptions lazy = {};
};

using RestoreProgress = std::function<void(std::uint64_t done_bytes)>;

/// Reads all of the source.
[[nodiscard]] Result<Fork> restore_by_copying(const Manifest& manifest, PageSource& source,
                                              const RestoreProgress& progress = {});
/// The source is the pager's until the last region is gone. A region that is ROM shows its pages when they are touched.
[[nodiscard]] Result<Fork> restore_lazily(const Manifest& manifest, std::shared_ptr<PageSource> source,
                                          const LazyOptions& options);

}  // namespace guestmem
