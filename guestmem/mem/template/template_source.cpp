// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/template_source.hpp"

#include <fmt/format.h>

#include <optional>
#include <utility>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/template/compressed_image.hpp"
#include "guestmem/mem/template/image_check.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/mem/template/template_layers.hpp"

namespace guestmem {

struct TemplateSource::Layer {
    const Template* of = nullptr;
    Fd sums;    ///< not open: nobody could have changed the pages
    Fd chunks;  ///< of a compressed image
    std::optional<CompressedImageReader> compressed = std::nullopt;
};

namespace {

/// Hands on the pages whose sums fit.
class Judge final : public PageSink {
public:
    Judge(const Template& of, FdView sums, PageSink& sink) : of_(of), sums_(sums), sink_(sink) {}

    Result<void> take_pages(std::uint64_t offset_bytes, std::span<const std::byte> pages) override {
        GM_TRY(sums_.compare_pages(offset_bytes, pages, note_));
        GM_TRY(verdict());
        return sink_.take_pages(offset_bytes, pages);
    }
    Result<void> take_zeros(ImagePart part) override {
        GM_TRY(sums_.compare_zeros(part, note_));
        GM_TRY(verdict());
        return sink_.take_zeros(part);
    }

private:
    [[nodiscard]] Result<void> verdict() const {
        if (!bad_) return {};
        return Error{Errc::corrupt,
                     fmt::format("{}: the page at {} is not what it was: its sum is {:#x}, and "
                                 "{:#x} is expected; `guestmem template verify` tells all",
                                 of_.folder(), place_in_guest(of_.manifest(), bad_->image_offset_bytes),
                                 bad_->sum, bad_->expected)};
    }

    const Template& of_;
    SumComparer sums_;
    PageSink& sink_;
    std::optional<BadPage> bad_;
    SumComparer::Each note_ = [this](std::uint64_t page, std::uint64_t expected, std::uint64_t found) {
        if (expected != found && !bad_) bad_ = BadPage{page * page_size_bytes, found, expected};
    };
};

}  // namespace

TemplateSource::TemplateSource() = default;
TemplateSource::~TemplateSource() = default;

Result<std::unique_ptr<TemplateSource>> TemplateSource::open(std::shared_ptr<const Template> base) {
    std::unique_ptr<TemplateSource> source{new TemplateSource};
    source->leases_ = GM_TRY(base->hold());
    source->templates_ = base->layers();
    for (const Template* const of : source->templates_) {
        Layer layer{.of = of, .sums = {}, .chunks = {}};
        layer.sums = GM_TRY_CONTEXT(of->open_sums(), of->folder());
        const Manifest& manifest = of->manifest();
        if (manifest.encoding == ImageEncoding::zstd) {
            layer.chunks = GM_TRY_CONTEXT(of->open_chunks(), of->folder());
            layer.compressed =
                GM_TRY_CONTEXT(CompressedImageReader::open(of->image(), layer.chunks, manifest.image_bytes,
                                                           manifest.stored_bytes, manifest.chunks_sum),
                               of->folder());
        }
        source->layers_.push_back(std::move(layer));
    }
    source->base_ = std::move(base);
    return source;
}

std::uint64_t TemplateSource::size_bytes() const { return base_->manifest().image_bytes; }

Result<void> TemplateSource::fetch(ImagePart wanted, PageSink& sink) {
    if (wanted.offset_bytes % page_size_bytes != 0 || wanted.size_bytes % page_size_bytes != 0 ||
        wanted.size_bytes > size_bytes() || wanted.offset_bytes > size_bytes() - wanted.size_bytes)
        return Error{Errc::invalid_argument,
                     fmt::format("{}: {} bytes at {} are wanted of an image of {} bytes in whole pages",
                                 base_->folder(), wanted.size_bytes, wanted.offset_bytes, size_bytes())};
    return for_each_piece(templates_, wanted, [&](std::size_t number, ImagePart part) -> Result<void> {
        Layer& layer = layers_[number];
        const auto read = [&](PageSink& to) {
            return layer.compressed ? layer.compressed->read(part, to)
                                    : read_raw_image(layer.of->image(), part, to);
        };
        if (!layer.sums.is_open()) return read(sink);
        Judge judge{*layer.of, layer.sums, sink};
        return read(judge);
    });
}

}  // namespace guestmem
