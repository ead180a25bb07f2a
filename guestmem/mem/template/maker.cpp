// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/maker.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/template/store.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/mem/template/template_files.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/folder.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/owned_file.hpp"
#include "guestmem/sys/sparse_file.hpp"
#include "guestmem/sys/written_pages.hpp"

namespace guestmem {

TemplateMaker::TemplateMaker(TemplateMaker&& other) noexcept
    : folder_(std::move(other.folder_)),
      work_(std::exchange(other.work_, {})),
      work_lock_(std::exchange(other.work_lock_, std::nullopt)),
      image_(std::move(other.image_)),
      sums_(std::move(other.sums_)),
      chunks_(std::move(other.chunks_)),
      options_(other.options_),
      parent_(std::move(other.parent_)),
      base_(std::move(other.base_)),
      compressed_(std::move(other.compressed_)),
      writer_(std::move(other.writer_)),
      manifest_(std::move(other.manifest_)) {}

TemplateMaker::~TemplateMaker() {
    // What cannot be removed is removed by the next maker in this store.
    if (!work_.empty()) static_cast<void>(remove_tree(work_));
}

Result<TemplateMaker> TemplateMaker::begin(const std::string& folder, const MakerOptions& options) {
    const std::string store = parent_folder(folder);
    const std::string name = folder.substr(folder.rfind('/') + 1);
    if (!is_template_name(name))
        return Error{
            Errc::invalid_argument,
            fmt::format("template '{}': a name is letters, digits, '.', '_' and '-', and begins with a "
                        "letter or digit",
                        name)};
    if (GM_TRY(path_facts(folder)).exists)
        return Error{Errc::already_exists,
                     fmt::format("template '{}': {} exists; remove it, or take another name", name, folder)};
    GM_TRY(remove_leftovers(store));

    TemplateMaker maker;
    maker.folder_ = folder;
    maker.options_ = options;
    GM_TRY(maker.make_work(store));
    GM_TRY(maker.open_files());
    maker.manifest_.id = GM_TRY(random_hex(16));
    maker.manifest_.made_at_s = seconds_since_1970();
    maker.manifest_.owner = own_user();
    return maker;
}

Result<void> TemplateMaker::make_work(const std::string& store) {
    // Before it is locked, another maker may take it for a dead one's and remove it.
    constexpr int attempts = 100;
    Error reason{Errc::busy, fmt::format("{}: other makers remove each folder that is made there", store)};
    for (int i = 0; i < attempts; ++i) {
        work_ = fmt::format("{}/{}{}", store, making_prefix, GM_TRY(random_hex(8)));
        const auto made = make_folder(work_, 0700);
        auto opened = made ? open_folder(work_) : Result<Fd>{made.error()};
        if (!opened && opened.error().code() != Errc::not_found) return std::move(opened).error();
        if (!opened) {
            reason = std::move(opened).error();
            continue;
        }
        work_lock_ = GM_TRY(FileLock::try_exclusive(*std::move(opened)));
        if (work_lock_ && GM_TRY(path_facts(work_)).exists) return {};
    }
    return reason;
}

Result<TemplateMaker> TemplateMaker::begin_difference(const std::string& folder,
                                                      std::shared_ptr<const Template> parent,
                                                      const MakerOptions& options) {
    if (parent_folder(folder) != parent_folder(parent->folder()))
        return Error{
            Errc::invalid_argument,
            fmt::format("template {}: a difference stands in the same store as its parent, which is {}",
                        folder, parent->folder())};
    if (parent->is_loaded())
        return Error{
            Errc::invalid_argument,
            fmt::format("template {}: a copy in memory keeps nobody from removing its folder: take the "
                        "template that Template::open() gives as the parent",
                        folder)};
    if (parent->layers().size() >= max_template_layers)
        return Error{
            Errc::out_of_range,
            fmt::format("template {}: its parent is the last of {} differences in a chain: flatten it first",
                        folder, max_template_layers)};
    TemplateMaker maker = GM_TRY(begin(folder, options));
    // Its lease keeps the parent until the difference has its name.
    maker.base_ = GM_TRY(TemplateSource::open(parent));
    maker.writer_ = std::make_unique<ImageWriter>(
        maker.image_.view(), maker.sums_.view(),
        ImageWriterOptions{.compressed = maker.compressed_.get(), .base = maker.base_.get()});
    maker.manifest_.regions = parent->manifest().regions;
    maker.manifest_.image_bytes = parent->manifest().image_bytes;
    maker.manifest_.parent = ParentLink{.name = parent->folder().substr(parent->folder().rfind('/') + 1),
                                        .id = parent->manifest().id};
    maker.parent_ = std::move(parent);
    return maker;
}

Result<void> TemplateMaker::open_files() {
    image_ = GM_TRY(create_file(work_ + "/" + template_image_file, 0400));
    sums_ = GM_TRY(create_file(work_ + "/" + template_sums_file, 0400));
    manifest_.encoding = options_.encoding;
    if (options_.encoding == ImageEncoding::zstd) {
        chunks_ = GM_TRY(create_file(work_ + "/" + template_chunks_file, 0400));
        compressed_ = std::make_unique<CompressedImageWriter>(image_.view(), chunks_.view(),
                                                              options_.compression_level);
    }
    writer_ = std::make_unique<ImageWriter>(image_.view(), sums_.view(),
                                            ImageWriterOptions{.compressed = compressed_.get()});
    return {};
}

Result<ImageRegion> TemplateMaker::place(ImageRegion region) {
    if (parent_) return place_in_parent(region);
    region.image_offset_bytes = manifest_.image_bytes;
    if (region.size_bytes > max_image_bytes)
        return Error{Errc::out_of_range, fmt::format("region '{}' of {} bytes: an image has at most {}",
                                                     region.name, region.size_bytes, max_image_bytes)};
    // The manifest is checked in the middle of its making: of storage it says what a raw image would.
    Manifest whole = manifest_;
    whole.regions.push_back(region);
    whole.image_bytes += region.size_bytes;
    whole.encoding = ImageEncoding::raw;
    whole.stored_bytes = whole.image_bytes;
    GM_TRY(check_manifest(whole));
    manifest_.regions = std::move(whole.regions);
    manifest_.image_bytes = whole.image_bytes;
    return region;
}

Result<ImageRegion> TemplateMaker::place_in_parent(const ImageRegion& region) const {
    for (const ImageRegion& known : manifest_.regions) {
        if (known.guest_address != region.guest_address) continue;
        if (known.size_bytes != region.size_bytes || known.is_rom != region.is_rom) break;
        if (known.image_offset_bytes < writer_->written_to())
            return Error{
                Errc::invalid_argument,
                fmt::format("region '{}': the regions of a difference come in the order of their places in "
                            "the parent's image, each once",
                            region.name)};
        return known;
    }
    return Error{Errc::invalid_argument,
                 fmt::format("region '{}': the parent has none of {} bytes at {:#x} that is {}", region.name,
                             region.size_bytes, region.guest_address, region.is_rom ? "ROM" : "RAM")};
}

Result<void> TemplateMaker::add_map(const MemoryMap& map) {
    struct Placed {
        ImageRegion region;
        const Region* memory;
    };
    std::vector<Placed> all;
    for (const auto& region : map.regions()) {
        if (!region->is_memory()) continue;
        ImageRegion placed = GM_TRY(place({.name = region->name(),
                                           .guest_address = region->range().base().value(),
                                           .size_bytes = region->range().size_bytes(),
                                           .is_rom = !region->is_writable()}));
        all.push_back({std::move(placed), region.get()});
    }
    if (parent_ && all.size() != manifest_.regions.size())
        return Error{
            Errc::invalid_argument,
            fmt::format(
                "{}: the map has {} of the {} regions of the parent; the others would be the parent's",
                folder_, all.size(), manifest_.regions.size())};
    const auto place_of = [](const Placed& placed) { return placed.region.image_offset_bytes; };
    std::ranges::sort(all, {}, place_of);
    for (const Placed& placed : all) GM_TRY(add_region(placed.region.image_offset_bytes, *placed.memory));
    return {};
}

Result<void> TemplateMaker::add_region(std::uint64_t image_offset_bytes, const Region& region) {
    const std::span<const std::byte> bytes{region.host_base(), region.range().size_bytes()};
    if (!region.memory()->is_private_anonymous()) return writer_->add_bytes(image_offset_bytes, bytes);
    // What was never touched is not read: that would give it pages.
    std::uint64_t done = 0;
    bool is_known = false;
    auto looked = written_pages(bytes, [&](FileExtent run) -> Result<void> {
        is_known = true;
        GM_TRY(writer_->add_zeros({image_offset_bytes + done, run.offset_bytes - done}));
        done = run.offset_bytes + run.size_bytes;
        return writer_->add_bytes(image_offset_bytes + run.offset_bytes,
                                  bytes.subspan(run.offset_bytes, run.size_bytes));
    });
    // Where there is no /proc, all is read.
    if (!looked && !is_known) return writer_->add_bytes(image_offset_bytes, bytes);
    if (!looked) return looked;
    return writer_->add_zeros({image_offset_bytes + done, bytes.size() - done});
}

Result<void> TemplateMaker::add_file(const ImageRegion& region, FdView file,
                                     std::uint64_t file_offset_bytes) {
    const ImageRegion placed = GM_TRY(place(region));
    return writer_->add_file(placed.image_offset_bytes, file, file_offset_bytes, placed.size_bytes);
}

Result<void> TemplateMaker::add_source(const std::vector<ImageRegion>& regions, PageSource& source,
                                       const ImageProgress& progress) {
    if (parent_ || !manifest_.regions.empty())
        return Error{Errc::invalid_argument, "a source is all of a template, and comes alone"};
    manifest_.regions = regions;
    manifest_.image_bytes = source.size_bytes();
    manifest_.stored_bytes = manifest_.image_bytes;
    GM_TRY(check_manifest(manifest_));
    return writer_->add_source({0, manifest_.image_bytes}, source, progress);
}

Result<void> TemplateMaker::add_written(std::span<const WrittenRegion> written) {
    if (!parent_) return Error{Errc::invalid_argument, "written pages are those of a difference"};
    struct Piece {
        std::uint64_t image_offset_bytes;
        std::span<const std::byte> bytes;
    };
    std::vector<Piece> pieces;
    for (const auto& [region, pages, since] : written) {
        if (!since.empty() && since != parent_->manifest().id)
            return Error{
                Errc::invalid_argument,
                fmt::format("region '{}': it was written since it was a fork of the template with the id {}, "
                            "and the parent is {}: take that template as the parent, or compare all pages",
                            region->name(), since, parent_->manifest().id)};
        const ImageRegion placed = GM_TRY(place_in_parent({.name = region->name(),
                                                           .guest_address = region->range().base().value(),
                                                           .size_bytes = region->range().size_bytes(),
                                                           .is_rom = !region->is_writable()}));
        for (const FileExtent& run : pages) {
            if (run.offset_bytes % page_size_bytes != 0 || run.size_bytes % page_size_bytes != 0 ||
                run.size_bytes > placed.size_bytes || run.offset_bytes > placed.size_bytes - run.size_bytes)
                return Error{
                    Errc::invalid_argument,
                    fmt::format("region '{}': {} bytes at {} are not whole pages of its {} bytes",
                                region->name(), run.size_bytes, run.offset_bytes, placed.size_bytes)};
            pieces.push_back({placed.image_offset_bytes + run.offset_bytes,
                              {region->host_base() + run.offset_bytes, run.size_bytes}});
        }
    }
    std::ranges::sort(pieces, {}, &Piece::image_offset_bytes);
    for (const Piece& piece : pieces) {
        if (piece.image_offset_bytes < writer_->written_to())
            return Error{Errc::invalid_argument,
                         fmt::format("pages at {} of the image are given twice", piece.image_offset_bytes)};
        GM_TRY(writer_->add_bytes(piece.image_offset_bytes, piece.bytes));
    }
    return {};
}

Result<void> TemplateMaker::set_state(std::span<const std::byte> state) {
    if (state.size() > max_state_bytes)
        return Error{Errc::out_of_range, fmt::format("a state of {} bytes: at most {} are stored",
                                                     state.size(), max_state_bytes)};
    const Fd file = GM_TRY(create_file(work_ + "/" + template_state_file, 0400));
    GM_TRY(write_at(file, 0, state));
    GM_TRY(sync_file(file));
    manifest_.state_bytes = state.size();
    manifest_.state_sum = bytes_sum(state);
    return {};
}

void TemplateMaker::set_provenance(std::string key, std::string value) {
    manifest_.provenance.insert_or_assign(std::move(key), std::move(value));
}

Result<Manifest> TemplateMaker::commit() && {
    const ImageSummary summary = GM_TRY(writer_->finish(manifest_.image_bytes));
    manifest_.stored_bytes = manifest_.image_bytes;
    if (compressed_) {
        const CompressedSummary stored = GM_TRY(compressed_->finish(manifest_.image_bytes));
        manifest_.stored_bytes = stored.stored_bytes;
        manifest_.chunks_sum = stored.chunks_sum;
    }
    if (parent_) GM_TRY(write_own_pages());
    manifest_.data_pages = summary.data_pages;
    manifest_.sum_of_sums = summary.sum_of_sums;
    manifest_.image_changed_ns = GM_TRY(ownership_of(image_)).modified_ns;
    const std::string text = to_text(manifest_);
    // What could not be read again is not written.
    GM_TRY(parse_manifest(text));
    const Fd file = GM_TRY(create_file(work_ + "/" + template_manifest_file, 0400));
    GM_TRY(write_at(file, 0, std::as_bytes(std::span{text})));
    GM_TRY(sync_file(file));
    GM_TRY(sync_folder(work_));
    GM_TRY(rename_new(work_, folder_));
    work_.clear();
    work_lock_.reset();
    GM_TRY(sync_folder(parent_folder(folder_)));
    return std::move(manifest_);
}

Result<void> TemplateMaker::write_own_pages() {
    const PageRuns& own = writer_->own_pages();
    if (own.runs().size() > max_page_runs)
        return Error{Errc::out_of_range,
                     fmt::format("{}: a difference in {} pieces, and at most {} are stored: make a "
                                 "template of its own",
                                 folder_, own.runs().size(), max_page_runs)};
    const std::vector<std::byte> bytes = own.to_bytes();
    const Fd file = GM_TRY(create_file(work_ + "/" + template_pages_file, 0400));
    GM_TRY(write_at(file, 0, bytes));
    GM_TRY(sync_file(file));
    manifest_.parent->count_pages = own.count_pages();
    manifest_.parent->pages_sum = bytes_sum(bytes);
    return {};
}

Result<std::vector<WrittenRegion>> written_since_fork(const Fork& fork) {
    std::vector<WrittenRegion> all;
    for (const auto& region : fork.regions) {
        if (!region->is_writable()) continue;
        if (fork.mode != RestoreMode::map) {
            // A copy that was given back (MADV_DONTNEED) is zeros, and no written page to the kernel.
            all.push_back({region, {{0, region->range().size_bytes()}}, {}});
            continue;
        }
        auto pages = GM_TRY_CONTEXT(
            written_pages(std::span<const std::byte>{region->host_base(), region->range().size_bytes()}),
            region->name());
        all.push_back({region, std::move(pages), fork.of});
    }
    return all;
}

WrittenRegion to_written(std::shared_ptr<const Region> region, const DirtyPages& pages) {
    WrittenRegion written{.region = std::move(region), .pages = {}, .since = {}};
    const std::uint64_t size = written.region->range().size_bytes();
    pages.for_each_run([&](DirtyRun run) {
        // Dirty pages may be smaller than ours.
        const std::uint64_t begin = run.offset / page_size_bytes * page_size_bytes;
        const std::uint64_t end = std::min(size, *round_up(run.offset + run.size_bytes, page_size_bytes));
        auto& all = written.pages;
        if (!all.empty() && all.back().offset_bytes + all.back().size_bytes >= begin)
            all.back().size_bytes = end - all.back().offset_bytes;
        else
            all.push_back({begin, end - begin});
    });
    return written;
}

}  // namespace guestmem
