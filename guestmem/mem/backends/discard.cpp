// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/backends/discard.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "guestmem/mem/backends/plan.hpp"
#include "guestmem/mem/backends/size_text.hpp"

namespace guestmem {

namespace {

/// Which have holes; ramfs has none, and of others it is not known.
enum class Holes : std::uint8_t { yes, no, unknown };
Holes holes_of(const BackendPlan& plan) {
    const bool is_device =
        plan.file.path.kind == FileKind::character_device || plan.file.path.kind == FileKind::block_device;
    if (is_device) return Holes::no;
    if (!plan.file.file_system) return Holes::unknown;
    const std::string& type = plan.file.file_system->type;
    constexpr std::array<std::string_view, 5> with{"ext4", "xfs", "btrfs", "tmpfs", "hugetlbfs"};
    if (std::ranges::count(with, type) != 0) return Holes::yes;
    return type == "ramfs" ? Holes::no : Holes::unknown;
}

void check_file_holes(Problems& problems, const BackendPlan& plan) {
    const std::string& path = plan.options.mem_path;
    switch (holes_of(plan)) {
        case Holes::yes: break;
        case Holes::no:
            problems.refuse("discard-without-holes",
                            fmt::format("{}: holes cannot be punched into it", path));
            break;
        case Holes::unknown:
            problems.warn(
                "discard-unknown",
                fmt::format("{}: whether its file system ({}) can punch holes shows at the first discard",
                            path, plan.file.file_system ? plan.file.file_system->type : "unknown"));
            break;
    }
}

}  // namespace

Backing backing_of(const BackendPlan& plan) {
    if (plan.options.kind == BackendKind::physical) return Backing::physical;
    if (plan.mode.access == MapAccess::read_only) return Backing::rom;
    const bool is_shared = plan.mode.sharing == MapSharing::shared;
    switch (plan.options.kind) {
        case BackendKind::ram: return is_shared ? Backing::object : Backing::anonymous;
        case BackendKind::memfd:
        case BackendKind::shm: return is_shared ? Backing::object : Backing::private_object;
        case BackendKind::file: return is_shared ? Backing::file : Backing::private_file;
        case BackendKind::physical: break;
    }
    return Backing::physical;
}

std::string_view to_word(DiscardUse use) {
    switch (use) {
        case DiscardUse::balloon: return "balloon";
        case DiscardUse::free_page_reporting: return "free-page-reporting";
        case DiscardUse::unplug: return "unplug";
    }
    return "unknown";
}

Problems check_discard(const BackendPlan& plan, DiscardUse use) {
    Problems problems;
    const DiscardRule& rule = row_of(backing_of(plan));
    if (rule.means == DiscardMeans::refused) {
        problems.refuse("discard-refused", std::string{rule.sentence});
        return problems;
    }
    if (rule.backing == Backing::file) check_file_holes(problems, plan);
    if (use == DiscardUse::free_page_reporting && !rule.reads_zeros)
        problems.warn("discard-shows-file",
                      "a page that was reported free reads as the file's bytes, and not as zeros",
                      "leave VIRTIO_BALLOON_F_PAGE_POISON out of what the device offers");
    if (plan.options.is_prealloc) {
        const std::string message =
            "prealloc=on takes all pages at the beginning, and this gives them back: later they may be lacking";
        if (use == DiscardUse::unplug)
            problems.refuse("discard-undoes-prealloc", message, "leave prealloc out");
        else
            problems.warn("discard-undoes-prealloc", message);
    }
    if (plan.is_huge)
        problems.warn(
            "discard-of-huge-pages",
            fmt::format("only whole pages of {} go back; another user may take them, and a write that then "
                        "finds none raises SIGBUS",
                        format_qemu_size(plan.page_bytes)));
    return problems;
}

}  // namespace guestmem
