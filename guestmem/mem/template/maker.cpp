// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/maker.hpp"

#include <fmt/format.h>

#include <utility>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/template/store.hpp"
#include "guestmem/mem/template/template_files.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/folder.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/owned_file.hpp"
#include "guestmem/sys/sparse_file.hpp"

namespace guestmem {

TemplateMaker::TemplateMaker(TemplateMaker&& other) noexcept
    : folder_(std::move(other.folder_)),
      work_(std::exchange(other.work_, {})),
      work_lock_(std::exchange(other.work_lock_, std::nullopt)),
      image_(std::move(other.image_)),
      sums_(std::move(other.sums_)),
      writer_(std::move(other.writer_)),
      manifest_(std::move(other.manifest_)) {}

TemplateMaker::~TemplateMaker() {
    // What cannot be removed is removed by the next maker in this store.
    if (!work_.empty()) static_cast<void>(remove_tree(work_));
}

Result<TemplateMaker> TemplateMaker::begin(const std::string& folder) {
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
    GM_TRY(maker.make_work(store));
    maker.image_ = GM_TRY(create_file(maker.work_ + "/" + template_image_file, 0400));
    maker.sums_ = GM_TRY(create_file(maker.work_ + "/" + template_sums_file, 0400));
    maker.writer_ = std::make_unique<ImageWriter>(maker.image_.view(), maker.sums_.view());
    maker.manifest_.id = GM_TRY(random_hex(16));
    maker.manifest_.made_at_s = seconds_since_1970();
    maker.manifest_.owner = own_user();
    return maker;
}

Result<void> TemplateMaker::make_work(const std::string& store) {
    // Before it is locked, another maker may take it for a dead one's and remove it.
    constexpr int attempts = 10;
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

ImageRegion& TemplateMaker::place(ImageRegion region) {
    region.image_offset_bytes = manifest_.image_bytes;
    manifest_.image_bytes += region.size_bytes;
    return manifest_.regions.emplace_back(std::move(region));
}

Result<void> TemplateMaker::add_map(const MemoryMap& map) {
    for (const auto& region : map.regions()) {
        if (!region->is_memory()) continue;
        const ImageRegion& placed = place({.name = region->name(),
                                           .guest_address = region->range().base().value(),
                                           .size_bytes = region->range().size_bytes(),
                                           .is_rom = !region->is_writable()});
        GM_TRY(check_manifest(manifest_));
        GM_TRY(writer_->add_bytes(placed.image_offset_bytes, {region->host_base(), placed.size_bytes}));
    }
    return {};
}

Result<void> TemplateMaker::add_file(const ImageRegion& region, FdView file,
                                     std::uint64_t file_offset_bytes) {
    const ImageRegion& placed = place(region);
    GM_TRY(check_manifest(manifest_));
    return writer_->add_file(placed.image_offset_bytes, file, file_offset_bytes, placed.size_bytes);
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
    GM_TRY(sync_folder(parent_folder(folder_)));
    return std::move(manifest_);
}

}  // namespace guestmem
