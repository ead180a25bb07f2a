// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/template.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/template/compressed_image.hpp"
#include "guestmem/mem/template/page_sum.hpp"
#include "guestmem/mem/template/template_files.hpp"
#include "guestmem/mem/template/template_layers.hpp"
#include "guestmem/mem/template/template_source.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/folder.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/mapping.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/memory_limits.hpp"
#include "guestmem/sys/owned_file.hpp"
#include "guestmem/sys/sparse_file.hpp"

namespace guestmem {

namespace {

constexpr std::uint32_t others_may_write = 0022;
constexpr std::uint32_t anybody_may_write = 0222;
constexpr std::uint64_t thp_bytes = std::uint64_t{2} << 20;

/// Who could change a template under its forks has to be somebody who could do worse anyway.
Result<void> check_owner(FdView file, std::string_view name, std::uint32_t forbidden_bits) {
    const Ownership ownership = GM_TRY_CONTEXT(ownership_of(file), name);
    const std::uint32_t user = own_user();
    if (ownership.owner != user && ownership.owner != 0 && user != 0)
        return Error{
            Errc::permission_denied,
            fmt::format("{}: it belongs to user {}, who could change it; templates of this user ({}) or of "
                        "root are used",
                        name, ownership.owner, user)};
    if ((ownership.permissions & forbidden_bits) != 0)
        return Error{Errc::permission_denied,
                     fmt::format("{}: its mode is {:04o}, and these may not write it: chmod {}", name,
                                 ownership.permissions, forbidden_bits == others_may_write ? "go-w" : "a-w")};
    return {};
}

Result<Fd> open_part(FdView folder, const char* name) {
    Fd file = GM_TRY(open_in(folder, name));
    GM_TRY(check_owner(file, name, anybody_may_write));
    return file;
}

Result<std::string> read_all(FdView file, std::size_t limit_bytes) {
    const FileFacts facts = GM_TRY(file_facts(file));
    if (facts.size_bytes > limit_bytes)
        return Error{Errc::out_of_range,
                     fmt::format("it has {} bytes; at most {} are read", facts.size_bytes, limit_bytes)};
    std::string text(facts.size_bytes, '\0');
    GM_TRY(read_at(file, 0, std::as_writable_bytes(std::span{text})));
    return text;
}

/// Bytes that keep what they need for as long as somebody has them.
struct Held {
    // The memory goes first.
    Template::Leases leases;
    std::shared_ptr<const Template> loaded;
    std::shared_ptr<const HostMemory> memory;
};
std::shared_ptr<const HostMemory> with_holders(Held held) {
    const HostMemory* const bytes = held.memory.get();
    return {std::make_shared<const Held>(std::move(held)), bytes};
}

std::uint64_t alignment_of(std::uint64_t size_bytes) { return size_bytes >= thp_bytes ? thp_bytes : 0; }
MapAccess access_of(const ImageRegion& region) {
    return region.is_rom ? MapAccess::read_only : MapAccess::read_write;
}

/// A file of the folder that has just so many bytes.
Result<Fd> open_part_of(FdView folder, const char* name, std::uint64_t size_bytes) {
    Fd file = GM_TRY(open_part(folder, name));
    const FileFacts facts = GM_TRY(file_facts(file));
    if (facts.size_bytes != size_bytes)
        return Error{Errc::corrupt, fmt::format("{}: it has {} bytes, and {} are expected", name,
                                                facts.size_bytes, size_bytes)};
    return file;
}

Result<PageRuns> read_own_pages(FdView folder, const Manifest& manifest) {
    const Fd file = GM_TRY(open_part(folder, template_pages_file));
    const std::string text =
        GM_TRY_CONTEXT(read_all(file, max_page_runs * page_run_bytes), template_pages_file);
    const auto bytes = std::as_bytes(std::span{text});
    PageRuns pages =
        GM_TRY_CONTEXT(parse_page_runs(bytes, manifest.image_bytes / page_size_bytes), template_pages_file);
    if (bytes_sum(bytes) != manifest.parent->pages_sum || pages.count_pages() != manifest.parent->count_pages)
        return Error{Errc::corrupt, fmt::format("{}: it is not that of the manifest", template_pages_file)};
    return pages;
}

/// Copies what a source gives to where it is mapped. Pages are asked for before they are touched: a shortage is an
/// error then, and no signal.
class IntoMapping final : public PageSink {
public:
    IntoMapping(FdView file, std::span<std::byte> bytes) : file_(file), bytes_(bytes) {}
    Result<void> take_pages(std::uint64_t offset_bytes, std::span<const std::byte> pages) override {
        GM_TRY(allocate_file(file_, offset_bytes, pages.size()));
        for (std::uint64_t at = 0; at < pages.size(); at += page_size_bytes) {
            const auto page = pages.subspan(at, page_size_bytes);
            if (is_zero_page(page)) continue;
            ++summary_.data_pages;
            sums_.add((offset_bytes + at) / page_size_bytes, page_sum(page));
        }
        std::memcpy(bytes_.data() + offset_bytes, pages.data(), pages.size());
        return {};
    }
    Result<void> take_zeros(ImagePart) override { return {}; }
    [[nodiscard]] ImageSummary summary() const {
        return {.data_pages = summary_.data_pages, .sum_of_sums = sums_.value()};
    }

private:
    FdView file_;
    std::span<std::byte> bytes_;
    ImageSummary summary_;
    SumOfSums sums_;
};

}  // namespace

Result<std::shared_ptr<const Template>> Template::open(const std::string& folder) {
    return open_layer(folder, 1);
}

Result<std::shared_ptr<const Template>> Template::open_layer(const std::string& folder, std::size_t depth) {
    const std::shared_ptr<Template> opened{new Template};
    opened->folder_ = folder;
    const std::string context = fmt::format("template {}", folder);
    opened->opened_ = GM_TRY_CONTEXT(open_folder(folder), context);
    GM_TRY_CONTEXT(check_owner(opened->opened_, "the folder", others_may_write), context);
    opened->manifest_file_ = GM_TRY_CONTEXT(open_part(opened->opened_, template_manifest_file), context);
    const std::string text = GM_TRY_CONTEXT(read_all(opened->manifest_file_, max_manifest_bytes), context);
    opened->manifest_ = GM_TRY_CONTEXT(parse_manifest(text), context);
    opened->image_ = GM_TRY_CONTEXT(open_part(opened->opened_, template_image_file), context);
    // Whether it was written since is a fork's question: who verifies looks for what was written.
    GM_TRY_CONTEXT(opened->check_image(ImageMustBe::whole), context);
    const FileSystemFacts store = GM_TRY_CONTEXT(file_system_facts(opened->image_), context);
    opened->known_image_ = {.size_bytes = opened->manifest_.stored_bytes, .page_bytes = store.page_bytes};
    if (opened->manifest_.parent) GM_TRY_CONTEXT(opened->open_parent(depth), context);
    return std::shared_ptr<const Template>{opened};
}

Result<void> Template::open_parent(std::size_t depth) {
    const ParentLink& link = *manifest_.parent;
    if (depth == max_template_layers)
        return Error{Errc::out_of_range,
                     fmt::format("it is the last of more than {} differences in a chain: flatten one of them",
                                 max_template_layers)};
    auto parent = open_layer(fmt::format("{}/{}", parent_folder(folder_), link.name), depth + 1);
    if (!parent) return std::move(parent).error().with_context(fmt::format("its parent '{}'", link.name));
    parent_ = *std::move(parent);
    if (parent_->manifest().id != link.id)
        return Error{
            Errc::corrupt,
            fmt::format(
                "it is a difference to a template '{}' with the id {}, and the one of this name has {}",
                link.name, link.id, parent_->manifest().id)};
    if (parent_->manifest().regions != manifest_.regions ||
        parent_->manifest().image_bytes != manifest_.image_bytes)
        return Error{Errc::corrupt, fmt::format("its parent '{}' has other regions", link.name)};
    // When all of them are there: a ring must not take as much memory as 64 differences may.
    own_pages_ = GM_TRY(read_own_pages(opened_, manifest_));
    return {};
}

std::vector<const Template*> Template::layers() const {
    std::vector<const Template*> all;
    for (const Template* one = this; one != nullptr; one = one->parent_.get()) all.push_back(one);
    return all;
}

Result<void> Template::check_image(ImageMustBe image) const {
    if (is_loaded_) return {};
    const Ownership found = GM_TRY(ownership_of(image_));
    if (found.size_bytes != manifest_.stored_bytes)
        return Error{Errc::corrupt, fmt::format("image: it has {} bytes, and the manifest says {}",
                                                found.size_bytes, manifest_.stored_bytes)};
    if (image == ImageMustBe::whole || found.modified_ns == manifest_.image_changed_ns) return {};
    return Error{
        Errc::corrupt,
        fmt::format(
            "image: it was written at {} ns since 1970, and last by the template's maker at {}; copies keep "
            "the time by cp --preserve, and `guestmem template verify` finds what was written",
            found.modified_ns, manifest_.image_changed_ns)};
}

Result<std::shared_ptr<const Lease>> Template::lease() const {
    const std::scoped_lock lock{mutex_};
    if (!lease_) lease_ = GM_TRY(Lease::take(folder_, manifest_file_));
    return lease_;
}

Result<Template::Leases> Template::hold() const {
    Leases leases;
    if (is_loaded_) return leases;
    for (const Template* layer = this; layer != nullptr; layer = layer->parent_.get()) {
        auto lease = GM_TRY_CONTEXT(layer->lease(), layer->folder_);
        leases.push_back(std::move(lease));
        GM_TRY_CONTEXT(layer->check_image(ImageMustBe::unchanged), layer->folder_);
    }
    return leases;
}

Result<Fork> Template::fork(const ForkOptions& options) const {
    const std::string context = fmt::format("fork of {}", folder_);
    if (options.mode == RestoreMode::map) {
        Fork fork = GM_TRY_CONTEXT(map_fork(), context);
        if (options.is_write_watched) GM_TRY_CONTEXT(watch_writes(fork), context);
        return fork;
    }
    if (options.is_write_watched)
        return Error{Errc::invalid_argument,
                     fmt::format("{}: writes are watched in a fork that is mapped; this one is to be {}",
                                 context, to_string(options.mode))};
    auto source = GM_TRY_CONTEXT(TemplateSource::open(shared_from_this()), context);
    if (options.mode == RestoreMode::lazy)
        return GM_TRY_CONTEXT(restore_lazily(manifest_, std::move(source), options.lazy), context);
    return GM_TRY_CONTEXT(restore_by_copying(manifest_, *source), context);
}

Result<void> Template::watch_writes(Fork& fork) const {
    const std::scoped_lock lock{mutex_};
    if (!watcher_ || !watcher_->is_of_this_process()) watcher_ = GM_TRY(WriteWatcher::create());
    for (const auto& region : fork.regions) {
        const std::span bytes{region->host_base(), region->is_writable() ? region->range().size_bytes() : 0};
        WriteWatch watch = GM_TRY_CONTEXT(watcher_->arm(bytes), region->name());
        fork.watches.push_back(std::move(watch));
    }
    return {};
}

Result<Fork> Template::map_fork() const {
    for (const Template* layer = this; layer != nullptr; layer = layer->parent_.get())
        if (layer->manifest_.encoding != ImageEncoding::raw)
            return Error{
                Errc::unsupported,
                fmt::format("{}: a compressed image cannot be mapped: fork it by copying or lazily, or "
                            "flatten it",
                            layer->folder_)};
    const Leases leases = GM_TRY(hold());
    Fork fork;
    fork.generation = GM_TRY(random_hex(16));
    fork.of = manifest_.id;
    std::size_t count_pieces = 0;
    for (const ImageRegion& region : manifest_.regions) {
        auto memory = GM_TRY(map_region(region, leases, count_pieces));
        auto made = GM_TRY(Region::create({.name = region.name,
                                           .base = GuestAddress{region.guest_address},
                                           .kind = region.is_rom ? RegionKind::rom : RegionKind::ram,
                                           .memory = std::move(memory)}));
        fork.regions.push_back(std::move(made));
    }
    return fork;
}

Result<std::shared_ptr<const HostMemory>> Template::map_region(const ImageRegion& region, Leases leases,
                                                               std::size_t& count_pieces) const {
    const auto self = is_loaded_ ? shared_from_this() : nullptr;
    if (!parent_) {
        Fd image = GM_TRY(image_.duplicate());
        auto memory = GM_TRY(
            HostMemory::create_from_file(std::move(image), {.size_bytes = region.size_bytes,
                                                            .offset_bytes = region.image_offset_bytes,
                                                            .access = access_of(region),
                                                            .sharing = MapSharing::private_copy,
                                                            .align_bytes = alignment_of(region.size_bytes),
                                                            .reserve = MapReserve::later,
                                                            .known = known_image_}));
        return with_holders({std::move(leases), self, std::move(memory)});
    }
    const std::vector<const Template*> all = layers();
    auto mapping = std::make_shared<Mapping>();
    *mapping = GM_TRY(Mapping::create(all.back()->image(), {.size_bytes = region.size_bytes,
                                                            .offset_bytes = region.image_offset_bytes,
                                                            .access = access_of(region),
                                                            .sharing = MapSharing::private_copy,
                                                            .guard_bytes = page_size_bytes,
                                                            .align_bytes = alignment_of(region.size_bytes),
                                                            .reserve = MapReserve::later}));
    const ImagePart whole{region.image_offset_bytes, region.size_bytes};
    GM_TRY(for_each_piece(all, whole, [&](std::size_t layer, ImagePart part) -> Result<void> {
        if (layer + 1 == all.size()) return {};
        if (++count_pieces > max_fork_pieces)
            return Error{
                Errc::out_of_range,
                fmt::format("{}: its differences are more than {} pieces, which are as many mappings: "
                            "fork it by copying or lazily, or flatten it",
                            region.name, max_fork_pieces)};
        return mapping->show_file(part.offset_bytes - region.image_offset_bytes, part.size_bytes,
                                  all[layer]->image(), part.offset_bytes);
    }));
    const std::span<std::byte> bytes = mapping->bytes();
    auto memory =
        GM_TRY(HostMemory::borrow(bytes, access_of(region), std::move(mapping), MapSharing::private_copy));
    return with_holders({std::move(leases), nullptr, std::move(memory)});
}

Result<ImageSummary> Template::fill(FdView memory) const {
    const Mapping mapping = GM_TRY(Mapping::create(memory, manifest_.image_bytes, MapAccess::read_write));
    const auto source = GM_TRY(TemplateSource::open(shared_from_this()));
    IntoMapping sink{memory, mapping.bytes()};
    constexpr std::uint64_t step_bytes = std::uint64_t{64} << 20;
    for (std::uint64_t at = 0; at < manifest_.image_bytes; at += step_bytes)
        GM_TRY(source->fetch({at, std::min(step_bytes, manifest_.image_bytes - at)}, sink));
    return sink.summary();
}

Result<void> Template::check_memory(const LoadOptions& options) const {
    // Huge pages come from a pool of their own, which is asked when they are taken.
    if (options.huge_page_bytes != 0) return {};
    std::uint64_t needed = 0;
    for (const Template* layer = this; layer != nullptr; layer = layer->parent_.get())
        needed += layer->manifest_.data_pages * page_size_bytes;
    // A page that several layers have is loaded once.
    needed = std::min(needed, manifest_.image_bytes);
    const MemoryLimits limits = GM_TRY(memory_limits());
    const std::uint64_t left =
        std::min(limits.available_bytes, limits.cgroup_headroom_bytes.value_or(limits.available_bytes));
    if (needed <= left) return {};
    return Error{
        Errc::exhausted,
        fmt::format("it has {} bytes that are no zeros, and {} bytes of memory are left", needed, left)};
}

Result<std::shared_ptr<const Template>> Template::load(const LoadOptions& options) const {
    const std::string context = fmt::format("load {}", folder_);
    const std::uint64_t unit = options.huge_page_bytes == 0 ? page_size_bytes : options.huge_page_bytes;
    for (const ImageRegion& region : manifest_.regions)
        if (region.size_bytes % unit != 0 || region.image_offset_bytes % unit != 0)
            return Error{
                Errc::invalid_argument,
                fmt::format("{}: region '{}' of {} bytes at {} of the image is not whole pages of {} bytes",
                            context, region.name, region.size_bytes, region.image_offset_bytes, unit)};
    GM_TRY_CONTEXT(check_memory(options), context);
    const std::shared_ptr<Template> loaded{new Template};
    loaded->image_ = GM_TRY_CONTEXT(create_sparse_memory({.name = "guestmem-template",
                                                          .size_bytes = manifest_.image_bytes,
                                                          .huge_page_bytes = options.huge_page_bytes},
                                                         Sealing::none),
                                    context);
    const ImageSummary filled = GM_TRY_CONTEXT(fill(loaded->image_), context);
    GM_TRY_CONTEXT(seal_content(loaded->image_), context);
    loaded->folder_ = folder_;
    loaded->opened_ = GM_TRY_CONTEXT(opened_.duplicate(), context);
    loaded->manifest_ = manifest_;
    loaded->manifest_.parent.reset();
    loaded->manifest_.encoding = ImageEncoding::raw;
    loaded->manifest_.stored_bytes = manifest_.image_bytes;
    loaded->manifest_.chunks_sum = 0;
    loaded->manifest_.data_pages = filled.data_pages;
    loaded->manifest_.sum_of_sums = filled.sum_of_sums;
    loaded->known_image_ = {.size_bytes = manifest_.image_bytes, .page_bytes = unit};
    loaded->is_loaded_ = true;
    return std::shared_ptr<const Template>{loaded};
}

Result<Fd> Template::open_sums() const {
    if (is_loaded_) return Fd{};
    return open_part_of(opened_, template_sums_file,
                        manifest_.image_bytes / page_size_bytes * sizeof(std::uint64_t));
}

Result<Fd> Template::open_chunks() const { return open_part(opened_, template_chunks_file); }

Result<void> Template::note_fork(const ForkNote& note) const {
    if (is_loaded_) return {};
    const auto lease = GM_TRY(this->lease());
    return lease->note(note);
}

Result<TemplateCheck> Template::verify(const ImageProgress& progress) const {
    const std::string context = fmt::format("verify {}", folder_);
    TemplateCheck check;
    // A loaded one is what its sums said when it was loaded, and nobody can write it.
    if (is_loaded_) return TemplateCheck{.image = {}, .sums_fit = true, .state_fits = true};
    const Fd sums = GM_TRY_CONTEXT(open_sums(), context);
    if (manifest_.encoding == ImageEncoding::raw) {
        check.image =
            GM_TRY_CONTEXT(guestmem::check_image(image_, sums, manifest_.image_bytes, progress), context);
    } else {
        const Fd chunks = GM_TRY_CONTEXT(open_chunks(), context);
        auto reader =
            GM_TRY_CONTEXT(CompressedImageReader::open(image_, chunks, manifest_.image_bytes,
                                                       manifest_.stored_bytes, manifest_.chunks_sum),
                           context);
        check.image =
            GM_TRY_CONTEXT(guestmem::check_image(reader, sums, manifest_.image_bytes, progress), context);
    }
    check.sums_fit = check.image.found.data_pages == manifest_.data_pages &&
                     check.image.found.sum_of_sums == manifest_.sum_of_sums;
    auto state = read_state();
    check.state_fits = state.has_value();
    if (!state && state.error().code() != Errc::corrupt) return std::move(state).error();
    return check;
}

Result<std::vector<std::byte>> Template::read_state() const {
    if (manifest_.state_bytes == 0) return std::vector<std::byte>{};
    const std::string context = fmt::format("state of {}", folder_);
    const Fd file = GM_TRY_CONTEXT(open_part(opened_, template_state_file), context);
    const FileFacts facts = GM_TRY_CONTEXT(file_facts(file), context);
    if (facts.size_bytes != manifest_.state_bytes)
        return Error{Errc::corrupt, fmt::format("{}: it has {} bytes, and the manifest says {}", context,
                                                facts.size_bytes, manifest_.state_bytes)};
    std::vector<std::byte> state(manifest_.state_bytes);
    GM_TRY_CONTEXT(read_at(file, 0, state), context);
    if (bytes_sum(state) != manifest_.state_sum)
        return Error{Errc::corrupt, fmt::format("{}: its sum is not the manifest's", context)};
    return state;
}

std::string place_in_guest(const Manifest& manifest, std::uint64_t image_offset_bytes) {
    for (const ImageRegion& region : manifest.regions) {
        if (image_offset_bytes < region.image_offset_bytes) continue;
        const std::uint64_t offset = image_offset_bytes - region.image_offset_bytes;
        if (offset < region.size_bytes)
            return fmt::format("guest address {:#x} ({} + {:#x})", region.guest_address + offset, region.name,
                               offset);
    }
    return fmt::format("byte {} of the image, which no region shows", image_offset_bytes);
}

}  // namespace guestmem
