// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>

#include "guestmem/mem/backends/checks.hpp"
#include "guestmem/mem/backends/size_text.hpp"

namespace guestmem::detail {

namespace {

/// A file that is made or grown.
void check_file_limit(BackendPlan& plan, const MachineFacts& machine) {
    const std::uint64_t needed = plan.options.offset_bytes + plan.mapped_bytes;
    if (needed > machine.limits.file_size_bytes)
        plan.problems.refuse(
            "file-size-limit",
            fmt::format("the file would have {} bytes, and this process may make files of {} "
                        "(RLIMIT_FSIZE)",
                        needed, machine.limits.file_size_bytes),
            "raise it: ulimit -f unlimited");
}

/// A file that is not there, or a folder for one without a name.
void check_new_file(BackendPlan& plan, const MachineFacts& machine) {
    const BackendOptions& options = plan.options;
    const bool is_folder = plan.file.path.exists;
    if (options.is_readonly) {
        plan.problems.refuse(is_folder ? "folder-is-no-file" : "file-missing",
                             fmt::format("{} {}; with readonly=on none is made", options.mem_path,
                                         is_folder ? "is a folder" : "does not exist"),
                             "name a file that is there");
        return;
    }
    const PathFacts& folder = is_folder ? plan.file.path : plan.file.folder;
    if (!folder.exists || folder.kind != FileKind::folder) {
        plan.problems.refuse("folder-missing",
                             fmt::format("{}: its folder does not exist", options.mem_path));
        return;
    }
    if (!folder.is_writable)
        plan.problems.refuse("folder-denied", fmt::format("{}: files cannot be made in {}", options.mem_path,
                                                          is_folder ? "this folder" : "its folder"));
    check_file_limit(plan, machine);
}

void check_permissions(BackendPlan& plan) {
    const BackendOptions& options = plan.options;
    const PathFacts& path = plan.file.path;
    if (!path.is_readable) {
        plan.problems.refuse("file-denied", fmt::format("{} may not be read by this user", options.mem_path));
        return;
    }
    if (path.is_writable || options.is_readonly) return;
    const bool is_private = plan.mode.sharing == MapSharing::private_copy;
    plan.problems.refuse(
        "file-denied",
        fmt::format("{} may not be written by this user, or at all (a read-only mount, an immutable file)",
                    options.mem_path),
        is_private ? "with readonly=on,rom=off it is only read, and writes stay in the VM"
                   : "with readonly=on it is only read, and the guest sees ROM");
}

void check_length(BackendPlan& plan, const MachineFacts& machine) {
    const BackendOptions& options = plan.options;
    const std::uint64_t size = plan.file.path.size_bytes;
    const std::uint64_t needed = options.offset_bytes + plan.mapped_bytes;
    if (size >= needed) return;
    if (size != 0) {
        const std::uint64_t room = size > options.offset_bytes ? size - options.offset_bytes : 0;
        const std::uint64_t fitting = room / plan.page_bytes * plan.page_bytes;
        const std::string smaller = fitting == 0 ? "" : fmt::format("use size={}, or ", fitting);
        plan.problems.refuse(
            "file-too-short",
            fmt::format("{} has {} bytes, and offset and size need {}; a file that has content is never "
                        "grown, since labels may stand at its end",
                        options.mem_path, size, needed),
            smaller + fmt::format("grow it: truncate -s {} {}", needed, options.mem_path));
    } else if (options.is_readonly) {
        plan.problems.refuse(
            "file-empty",
            fmt::format("{} is empty, and with readonly=on it is not grown: the first access would kill the "
                        "program",
                        options.mem_path));
    } else {
        check_file_limit(plan, machine);
    }
}

/// Where there are no blocks left, the write raises SIGBUS; in memory a read does, too.
void check_disk(BackendPlan& plan) {
    const std::uint64_t needed = needed_blocks_of(plan);
    if (needed == 0 || needed <= *plan.file.file_system->free_bytes) return;
    const std::string name =
        plan.options.kind == BackendKind::shm ? "the shared memory object" : plan.options.mem_path;
    const std::string message =
        fmt::format("{} may need {} more bytes, and its file system ({}) has {}", name, needed,
                    plan.file.file_system->type, *plan.file.file_system->free_bytes);
    // A shared file may have reserved its huge pages before.
    const bool has_reserved = plan.effect == FileEffect::none && plan.mode.sharing == MapSharing::shared;
    if (plan.options.is_prealloc || (plan.is_huge && plan.options.is_reserved && !has_reserved))
        plan.problems.refuse("disk-full", message);
    else
        plan.problems.warn("disk-too-small", message + "; an access that finds no space raises SIGBUS",
                           "prealloc=on would tell at the beginning");
}

void check_physical(BackendPlan& plan) {
    const BackendOptions& options = plan.options;
    if (!plan.file.path.exists) {
        plan.problems.refuse("device-missing", fmt::format("{} does not exist", options.mem_path));
        return;
    }
    const std::uint64_t needed = options.offset_bytes + plan.mapped_bytes;
    if (plan.file.path.kind != FileKind::character_device && plan.file.path.kind != FileKind::regular)
        plan.problems.refuse("device-wrong",
                             fmt::format("{} is neither a device nor a resource file", options.mem_path));
    else if (plan.file.path.kind == FileKind::regular && plan.file.path.size_bytes < needed)
        plan.problems.refuse("device-too-short",
                             fmt::format("{} has {} bytes, and offset and size need {}", options.mem_path,
                                         plan.file.path.size_bytes, needed));
    check_permissions(plan);
}

}  // namespace

std::uint64_t missing_blocks_of(const BackendPlan& plan) {
    const bool has_file = plan.options.kind == BackendKind::file && plan.effect == FileEffect::none;
    const std::uint64_t all = plan.file.path.allocated_bytes;
    const std::uint64_t there = has_file ? all - std::min(all, plan.file.outside_data_bytes) : 0;
    return plan.mapped_bytes - std::min(plan.mapped_bytes, there);
}

std::uint64_t needed_blocks_of(const BackendPlan& plan) {
    // What file system a device's name is in says nothing of the device.
    const FileKind kind = plan.file.path.kind;
    if (kind == FileKind::character_device || kind == FileKind::block_device) return 0;
    if (plan.options.kind != BackendKind::file && plan.options.kind != BackendKind::shm) return 0;
    const auto& file_system = plan.file.file_system;
    if (!file_system || !file_system->free_bytes) return 0;
    const bool writes_file =
        plan.mode.sharing == MapSharing::shared && plan.mode.access == MapAccess::read_write;
    // In memory a page is the file's before it is read or copied. Huge pages are copied without.
    const bool takes_pages = file_system->is_memory && (!plan.is_huge || plan.options.is_reserved);
    return writes_file || takes_pages ? missing_blocks_of(plan) : 0;
}

void check_file(BackendPlan& plan, const MachineFacts& machine) {
    if (plan.options.kind == BackendKind::shm) return check_disk(plan);
    if (plan.options.mem_path.empty()) return;
    if (plan.options.kind == BackendKind::physical) return check_physical(plan);
    if (plan.options.kind != BackendKind::file) return;
    const PathFacts& path = plan.file.path;
    if (plan.file.is_broken_link) {
        plan.problems.refuse("link-to-nothing",
                             fmt::format("{} is a link that leads nowhere, and no file is made through it",
                                         plan.options.mem_path),
                             "remove it, or make the file that it names");
    } else if (plan.file.file_system && plan.file.file_system->type == "proc") {
        plan.problems.refuse("file-wrong",
                             fmt::format("{} is a text of the kernel, and no memory", plan.options.mem_path));
    } else if (!path.exists || path.kind == FileKind::folder) {
        check_new_file(plan, machine);
    } else if (path.kind == FileKind::regular) {
        check_permissions(plan);
        check_length(plan, machine);
    } else if (path.kind == FileKind::character_device || path.kind == FileKind::block_device) {
        check_permissions(plan);
        plan.problems.warn("device-size-unknown",
                           fmt::format("{} is a device: whether it reaches so far shows when it is mapped",
                                       plan.options.mem_path));
    } else {
        plan.problems.refuse("file-wrong",
                             fmt::format("{} is no file that can be mapped", plan.options.mem_path));
    }
    if (!plan.problems.has_refusal()) check_disk(plan);
}

}  // namespace guestmem::detail
