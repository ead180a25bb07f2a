// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/restore.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/paging/part_set.hpp"
#include "guestmem/mem/template/template_files.hpp"

namespace guestmem {

namespace {

constexpr std::uint64_t thp_bytes = std::uint64_t{2} << 20;
constexpr std::uint64_t step_bytes = std::uint64_t{64} << 20;

/// Copies what a source gives into the memory of the regions. Memory that was just made is zeros.
class IntoRegions final : public PageSink {
public:
    void add(const ImageRegion& region, std::span<std::byte> memory) { places_.push_back({region, memory}); }
    /// What has not come yet, from its beginning on; nothing when all has.
    [[nodiscard]] std::optional<ImagePart> missing(std::uint64_t image_bytes) const {
        return come_.first_missing({0, image_bytes});
    }

    Result<void> take_pages(std::uint64_t offset_bytes, std::span<const std::byte> pages) override {
        GM_TRY(note({offset_bytes, pages.size()}));
        for (const auto& [region, memory] : places_) {
            const std::uint64_t begin = std::max(offset_bytes, region.image_offset_bytes);
            const std::uint64_t end =
                std::min(offset_bytes + pages.size(), region.image_offset_bytes + region.size_bytes);
            if (begin < end)
                std::memcpy(memory.data() + (begin - region.image_offset_bytes),
                            pages.data() + (begin - offset_bytes), end - begin);
        }
        return {};
    }
    Result<void> take_zeros(ImagePart part) override { return note(part); }

private:
    [[nodiscard]] Result<void> note(ImagePart part) {
        if (part.size_bytes > max_image_bytes || part.offset_bytes > max_image_bytes)
            return Error{Errc::corrupt, fmt::format("restore: the source gives {} bytes at {} of the image",
                                                    part.size_bytes, part.offset_bytes)};
        return come_.add(part);
    }

    struct Place {
        const ImageRegion& region;
        std::span<std::byte> memory;
    };
    std::vector<Place> places_;
    PartSet come_;
};

Result<std::shared_ptr<const Region>> to_region(const ImageRegion& region,
                                                std::shared_ptr<const HostMemory> memory) {
    return Region::create({.name = region.name,
                           .base = GuestAddress{region.guest_address},
                           .kind = region.is_rom ? RegionKind::rom : RegionKind::ram,
                           .memory = std::move(memory)});
}

Result<void> check_source(const Manifest& manifest, const PageSource& source) {
    GM_TRY(check_manifest(manifest));
    if (source.size_bytes() == manifest.image_bytes) return {};
    return Error{Errc::invalid_argument,
                 fmt::format("restore: the source has {} bytes, and the manifest says {}",
                             source.size_bytes(), manifest.image_bytes)};
}

}  // namespace

std::string_view to_string(RestoreMode mode) {
    switch (mode) {
        case RestoreMode::map: return "map";
        case RestoreMode::copy: return "copy";
        case RestoreMode::lazy: return "lazy";
    }
    return "?";
}

Fork& Fork::operator=(Fork&& other) noexcept {
    const Fork before{std::move(*this)};
    generation = std::move(other.generation);
    of = std::move(other.of);
    mode = other.mode;
    regions = std::move(other.regions);
    pager = std::move(other.pager);
    watches = std::move(other.watches);
    return *this;
}

Result<Fork> restore_by_copying(const Manifest& manifest, PageSource& source,
                                const RestoreProgress& progress) {
    GM_TRY(check_source(manifest, source));
    Fork fork;
    fork.generation = GM_TRY(random_hex(16));
    fork.of = manifest.id;
    fork.mode = RestoreMode::copy;
    IntoRegions sink;
    for (const ImageRegion& region : manifest.regions) {
        auto memory = GM_TRY_CONTEXT(
            HostMemory::create_anonymous({.size_bytes = region.size_bytes,
                                          .align_bytes = region.size_bytes >= thp_bytes ? thp_bytes : 0,
                                          .reserve = MapReserve::later}),
            region.name);
        sink.add(region, memory->bytes());
        auto made = GM_TRY(to_region(region, std::move(memory)));
        fork.regions.push_back(std::move(made));
    }
    // A stream may bring more than it was asked for, in its own order, and does not bring it again.
    while (const auto missing = sink.missing(manifest.image_bytes)) {
        GM_TRY(source.fetch({missing->offset_bytes, std::min(step_bytes, missing->size_bytes)}, sink));
        const auto left = sink.missing(manifest.image_bytes);
        if (left && left->offset_bytes == missing->offset_bytes)
            return Error{Errc::corrupt, fmt::format("restore: the source gives nothing at {} of the image",
                                                    left->offset_bytes)};
        if (progress) progress(left ? left->offset_bytes : manifest.image_bytes);
    }
    return fork;
}

Result<Fork> restore_lazily(const Manifest& manifest, std::shared_ptr<PageSource> source,
                            const LazyOptions& options) {
    GM_TRY(check_source(manifest, *source));
    PagerOptions pager{.source = std::move(source),
                       .ahead = options.ahead,
                       .is_filled = options.is_filled,
                       .is_recorded = options.is_recorded,
                       .patience = options.patience,
                       .on_failure = options.on_failure};
    for (const ImageRegion& region : manifest.regions)
        pager.regions.push_back({region.image_offset_bytes, region.size_bytes});
    Fork fork;
    fork.generation = GM_TRY(random_hex(16));
    fork.of = manifest.id;
    fork.mode = RestoreMode::lazy;
    fork.pager = GM_TRY(Pager::start(std::move(pager)));
    for (std::size_t index = 0; index < manifest.regions.size(); ++index) {
        auto memory = GM_TRY(fork.pager->memory(index));
        auto made = GM_TRY(to_region(manifest.regions[index], std::move(memory)));
        fork.regions.push_back(std::move(made));
    }
    return fork;
}

}  // namespace guestmem
