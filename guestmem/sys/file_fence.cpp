// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/file_fence.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/landlock.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/fd.hpp"

namespace guestmem {
namespace {

constexpr std::uint64_t reading = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR;
/// All that the first version of it knows, but for removing.
constexpr std::uint64_t first_version =
    reading | LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_MAKE_CHAR |
    LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_SOCK |
    LANDLOCK_ACCESS_FS_MAKE_FIFO | LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM;
// Of later versions, which older headers have not got. Linking to another folder is refused by every version.
constexpr std::uint64_t truncating = std::uint64_t{1} << 14;
constexpr long version_with_truncating = 3;

template <typename Function>
long landlock_call(Function&& function) {
    return checked_call(SysCall::landlock, [&] { return static_cast<long>(function()); });
}

Error failure(std::string_view what) {
    return Error::from_errno(errno, fmt::format("fence off the files of this host: {}", what));
}

Result<void> open_gate(FdView fence, const std::string& path) {
    const Fd place{checked_call(SysCall::open, [&] { return ::open(path.c_str(), O_PATH | O_CLOEXEC); })};
    if (!place.is_open() && errno == ENOENT) return {};
    if (!place.is_open()) return failure(path);
    landlock_path_beneath_attr gate{.allowed_access = reading, .parent_fd = place.view().number()};
    const auto add = [&] {
        return ::syscall(SYS_landlock_add_rule, fence.number(), LANDLOCK_RULE_PATH_BENEATH, &gate, 0);
    };
    if (landlock_call(add) == 0) return {};
    if (errno != EINVAL) return failure(path);
    // No folder: it has no entries to be read.
    gate.allowed_access = LANDLOCK_ACCESS_FS_READ_FILE;
    if (landlock_call(add) < 0) return failure(path);
    return {};
}

}  // namespace

Result<bool> restrict_files(std::span<const std::string> readable) {
    const long version = landlock_call(
        [] { return ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION); });
    if (version < 0 && (errno == ENOSYS || errno == EOPNOTSUPP)) return false;
    if (version < 0) return failure("ask the kernel for its version");
    landlock_ruleset_attr rules{};
    rules.handled_access_fs = first_version | (version >= version_with_truncating ? truncating : 0);
    const Fd fence{static_cast<int>(landlock_call(
        [&] { return ::syscall(SYS_landlock_create_ruleset, &rules, sizeof rules.handled_access_fs, 0); }))};
    if (!fence.is_open()) return failure("begin");
    for (const std::string& path : readable) GM_TRY(open_gate(fence, path));
    if (checked_call(SysCall::prctl, [] { return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); }) < 0)
        return failure("set no_new_privs");
    if (landlock_call([&] { return ::syscall(SYS_landlock_restrict_self, fence.view().number(), 0); }) < 0)
        return failure("hand it to the kernel");
    return true;
}

}  // namespace guestmem
