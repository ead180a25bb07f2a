// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/dirty_pages.hpp"
#include "guestmem/mem/memory_map.hpp"
#include "guestmem/mem/template/compressed_image.hpp"
#include "guestmem/mem/template/image.hpp"
#include "guestmem/mem/template/image_check.hpp"
#include "guestmem/mem/template/manifest.hpp"
#include "guestmem/mem/template/restore.hpp"
#include "guestmem/mem/template/template_source.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/file_lock.hpp"
#include "guestmem/sys/sparse_file.hpp"

/// Makes a template: it exists whole or not at all.
///
/// Concepts: all of it is written into a folder beside, which gets the template's name when everything is on the disk.
/// A difference has the layout of its parent and the pages that are not the parent's: it is made of all of a memory,
/// which is compared, or of the pages of which the caller knows that they were written.
/// Contract: what is not committed is removed, by the destructor or, when the process was killed, by the next maker in
/// the same store. commit() waits for the disk: after it the template survives a power cut. A name that exists is an
/// error (already_exists) and left alone.
/// Threads: one at a time.
/// Limits: a difference of max_page_runs pieces.
/// Cost: each page that is data is read, summed and written once; a difference also reads the parent's pages at the
/// same places. written_since_fork() and dirty pages make that proportional to what was written.
/// Example:
///     TemplateMaker maker = GM_TRY(TemplateMaker::begin("/var/lib/guestmem/templates/base"));
///     GM_TRY(maker.add_map(*map));
///     GM_TRY(maker.set_state(device_state));
///     GM_TRY(std::move(maker).commit());

namespace guestmem {

class Template;

struct MakerOptions {
    ImageEncoding encoding = ImageEncoding::raw;
    int compression_level = default_compression_level;
};

/// Pages of a region that were written, as offsets from its beginning.
struct WrittenRegion {
    std::shared_ptr<const Region> region;
    std::vector<FileExtent> pages;
    TemplateId since = {};  ///< all other pages are those of this template; empty: the caller knows
};

/// What was written in a fork since it was made, as the kernel knows it. Of a fork that is no mapping of its template
/// it is all pages, which the maker of a difference compares.
[[nodiscard]] Result<std::vector<WrittenRegion>> written_since_fork(const Fork& fork);
/// What a dirty log says of a region, or a WriteWatch: the parent has to be what the memory was when that began. Of
/// answers that follow each other, each difference is the parent of the next.
[[nodiscard]] WrittenRegion to_written(std::shared_ptr<const Region> region, const DirtyPages& pages);

class TemplateMaker {
public:
    [[nodiscard]] static Result<TemplateMaker> begin(const std::string& folder,
                                                     const MakerOptions& options = {});
    /// Of a difference to a template in the same store.
    [[nodiscard]] static Result<TemplateMaker> begin_difference(const std::string& folder,
                                                                std::shared_ptr<const Template> parent,
                                                                const MakerOptions& options = {});
    TemplateMaker(TemplateMaker&& other) noexcept;
    TemplateMaker& operator=(TemplateMaker&&) = delete;
    ~TemplateMaker();

    /// The RAM and ROM of a map, in its order. Of a difference: all regions of the parent, by guest address and size.
    [[nodiscard]] Result<void> add_map(const MemoryMap& map);
    /// A region whose bytes are those of a file. Of a difference: a region of the parent, in its order; those that are
    /// not given stay the parent's.
    [[nodiscard]] Result<void> add_file(const ImageRegion& region, FdView file,
                                        std::uint64_t file_offset_bytes);
    /// All regions and pages of a template, or of what somebody sends. Not of a difference.
    [[nodiscard]] Result<void> add_source(const std::vector<ImageRegion>& regions, PageSource& source,
                                          const ImageProgress& progress = {});
    /// Of a difference: pages that were written; all others are the parent's. Once, with all regions.
    [[nodiscard]] Result<void> add_written(std::span<const WrittenRegion> written);
    [[nodiscard]] Result<void> set_state(std::span<const std::byte> state);
    void set_provenance(std::string key, std::string value);

    [[nodiscard]] Result<Manifest> commit() &&;

private:
    TemplateMaker() = default;
    [[nodiscard]] Result<void> make_work(const std::string& store);
    [[nodiscard]] Result<void> open_files();
    [[nodiscard]] Result<void> add_region(std::uint64_t image_offset_bytes, const Region& region);
    /// Its place in the image: the next one, or that in the parent.
    [[nodiscard]] Result<ImageRegion> place(ImageRegion region);
    [[nodiscard]] Result<ImageRegion> place_in_parent(const ImageRegion& region) const;
    [[nodiscard]] Result<void> write_own_pages();

    std::string folder_;
    std::string work_;  ///< where it is being made; empty: nothing to remove
    std::optional<FileLock> work_lock_;
    Fd image_;
    Fd sums_;
    Fd chunks_;
    MakerOptions options_;
    std::shared_ptr<const Template> parent_;
    std::unique_ptr<TemplateSource> base_;
    std::unique_ptr<CompressedImageWriter> compressed_;
    std::unique_ptr<ImageWriter> writer_;
    Manifest manifest_;
};

}  // namespace guestmem
