// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/template.hpp"

#include <fmt/format.h>

#include <utility>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/template/template_files.hpp"
#include "guestmem/sys/folder.hpp"
#include "guestmem/sys/host.hpp"
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

/// Bytes that keep the lease for as long as somebody has them.
struct Held {
    std::shared_ptr<const HostMemory> memory;
    std::shared_ptr<const Lease> lease;
};
std::shared_ptr<const HostMemory> with_lease(std::shared_ptr<const HostMemory> memory,
                                             const std::shared_ptr<const Lease>& lease) {
    const HostMemory* const bytes = memory.get();
    return {std::make_shared<const Held>(std::move(memory), lease), bytes};
}

}  // namespace

Result<std::shared_ptr<const Template>> Template::open(const std::string& folder) {
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
    return std::shared_ptr<const Template>{opened};
}

Result<void> Template::check_image(ImageMustBe image) const {
    const Ownership found = GM_TRY(ownership_of(image_));
    if (found.size_bytes != manifest_.image_bytes)
        return Error{Errc::corrupt, fmt::format("image: it has {} bytes, and the manifest says {}",
                                                found.size_bytes, manifest_.image_bytes)};
    if (image == ImageMustBe::whole || found.modified_ns == manifest_.image_changed_ns) return {};
    return Error{
        Errc::corrupt,
        fmt::format("image: it was written {} ns after the template was made; copies keep the time by "
                    "cp --preserve, and `guestmem template verify` finds what was written",
                    found.modified_ns - manifest_.image_changed_ns)};
}

Result<std::shared_ptr<const Lease>> Template::lease() const {
    const std::scoped_lock lock{mutex_};
    if (!lease_) lease_ = GM_TRY(Lease::take(folder_, manifest_file_));
    return lease_;
}

Result<Fork> Template::fork() const {
    const std::string context = fmt::format("fork of {}", folder_);
    if (manifest_.parent)
        return Error{Errc::unsupported, fmt::format("{}: it is a difference to '{}'; flatten it first",
                                                    context, manifest_.parent->name)};
    const auto lease = GM_TRY_CONTEXT(this->lease(), context);
    GM_TRY_CONTEXT(check_image(ImageMustBe::unchanged), context);
    Fork fork;
    fork.generation = GM_TRY_CONTEXT(random_hex(16), context);
    for (const ImageRegion& region : manifest_.regions) {
        Fd image = GM_TRY_CONTEXT(image_.duplicate(), context);
        auto memory = GM_TRY_CONTEXT(
            HostMemory::create_from_file(
                std::move(image), {.size_bytes = region.size_bytes,
                                   .offset_bytes = region.image_offset_bytes,
                                   .access = region.is_rom ? MapAccess::read_only : MapAccess::read_write,
                                   .sharing = MapSharing::private_copy,
                                   .align_bytes = region.size_bytes >= thp_bytes ? thp_bytes : 0,
                                   .reserve = MapReserve::later}),
            context);
        auto made = GM_TRY_CONTEXT(Region::create({.name = region.name,
                                                   .base = GuestAddress{region.guest_address},
                                                   .kind = region.is_rom ? RegionKind::rom : RegionKind::ram,
                                                   .memory = with_lease(std::move(memory), lease)}),
                                   context);
        fork.regions.push_back(std::move(made));
    }
    return fork;
}

Result<TemplateCheck> Template::verify(const ImageProgress& progress) const {
    const std::string context = fmt::format("verify {}", folder_);
    const Fd sums = GM_TRY_CONTEXT(open_part(opened_, template_sums_file), context);
    TemplateCheck check;
    check.image =
        GM_TRY_CONTEXT(guestmem::check_image(image_, sums, manifest_.image_bytes, progress), context);
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
