// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/host.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <pwd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <vector>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/fd.hpp"

namespace guestmem {
namespace {

std::optional<std::uint32_t> to_number(std::string_view text) {
    std::uint32_t number = 0;
    const auto [rest, status] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (status != std::errc{} || rest != text.data() + text.size()) return std::nullopt;
    return number;
}

/// chown(2) takes this id for "leave it as it is", so nobody can have it.
constexpr std::uint32_t no_id = 0xffffffff;

Result<std::uint32_t> checked_id(std::uint32_t id) {
    if (id == no_id) return Error{Errc::out_of_range, fmt::format("id {}: ids end at {}", id, no_id - 1)};
    return id;
}

}  // namespace

Result<std::uint64_t> available_memory_bytes() {
    const std::string text = GM_TRY(read_text_file("/proc/meminfo", 64 * 1024));
    constexpr std::string_view key = "MemAvailable:";
    const std::size_t at = text.find(key);
    if (at != std::string::npos) {
        const std::size_t digits = text.find_first_not_of(' ', at + key.size());
        std::uint64_t kib = 0;
        if (digits != std::string::npos &&
            std::from_chars(text.data() + digits, text.data() + text.size(), kib).ec == std::errc{})
            return kib * 1024;
    }
    return Error{Errc::unsupported, "/proc/meminfo has no MemAvailable line"};
}

std::uint64_t descriptor_limit() {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 1024;
    return limit.rlim_cur;
}

std::uint64_t raise_descriptor_limit() {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        ::setrlimit(RLIMIT_NOFILE, &limit);
    }
    return descriptor_limit();
}

Result<std::uint64_t> count_open_descriptors() {
    const std::unique_ptr<DIR, int (*)(DIR*)> folder{::opendir("/proc/self/fd"), &::closedir};
    if (!folder) return Error::from_errno(errno, "open /proc/self/fd");
    std::uint64_t count = 0;
    while (const dirent* entry = ::readdir(folder.get()))
        if (entry->d_name[0] != '.') ++count;
    return count - 1;  // the folder's own descriptor
}

bool is_exempt_from_inflight_limit() {
    // The kernel asks for a capability in the first user namespace: in another one a full set means nothing.
    // A map that cannot be read counts as another one, which is the careful answer and no failure.
    std::ifstream numbers{"/proc/self/uid_map"};
    std::uint64_t inside = 1;
    std::uint64_t outside = 1;
    std::uint64_t count = 0;
    numbers >> inside >> outside >> count;
    if (inside != 0 || outside != 0 || count != 4294967295U) return false;
    __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    __user_cap_data_struct data[2]{};
    if (::syscall(SYS_capget, &header, data) != 0) return false;
    constexpr std::uint32_t wanted = (1U << CAP_SYS_RESOURCE) | (1U << CAP_SYS_ADMIN);
    return (data[0].effective & wanted) != 0;
}

Result<std::uint64_t> huge_page_size_at(const std::string& folder) {
    struct statfs status{};
    if (checked_call(SysCall::stat, [&] { return ::statfs(folder.c_str(), &status); }) < 0)
        return Error::from_errno(errno, fmt::format("look at folder {}", folder));
    if (status.f_type != HUGETLBFS_MAGIC) return std::uint64_t{0};
    return static_cast<std::uint64_t>(status.f_bsize);
}

std::uint32_t own_user() { return ::geteuid(); }
std::int32_t own_process() { return ::getpid(); }

std::string runtime_folder() {
    if (own_user() == 0) return "/run/guestmem";
    if (const auto folder = environment("XDG_RUNTIME_DIR")) return *folder + "/guestmem";
    return fmt::format("/run/user/{}/guestmem", own_user());
}

std::optional<std::string> environment(const char* name) {
    const char* value = ::secure_getenv(name);
    if (value == nullptr || *value == '\0') return std::nullopt;
    return std::string{value};
}

bool is_folder(const std::string& path) {
    struct stat status{};
    return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

std::string parent_folder(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    if (slash == std::string::npos) return ".";
    return slash == 0 ? "/" : path.substr(0, slash);
}

Result<void> make_folder(const std::string& path) {
    if (::mkdir(path.c_str(), 0755) == 0 || (errno == EEXIST && is_folder(path))) return {};
    return Error::from_errno(errno, fmt::format("make folder {}", path));
}

Result<std::uint32_t> user_id(const std::string& name_or_number) {
    if (const auto number = to_number(name_or_number)) return checked_id(*number);
    std::vector<char> buffer(16 * 1024);
    passwd entry{};
    passwd* found = nullptr;
    const int status = ::getpwnam_r(name_or_number.c_str(), &entry, buffer.data(), buffer.size(), &found);
    if (found != nullptr) return found->pw_uid;
    if (status != 0) return Error::from_errno(status, fmt::format("look up user '{}'", name_or_number));
    return Error{Errc::not_found, fmt::format("no user '{}' on this host", name_or_number)};
}

Result<std::uint32_t> group_id(const std::string& name_or_number) {
    if (const auto number = to_number(name_or_number)) return checked_id(*number);
    std::vector<char> buffer(64 * 1024);
    group entry{};
    group* found = nullptr;
    const int status = ::getgrnam_r(name_or_number.c_str(), &entry, buffer.data(), buffer.size(), &found);
    if (found != nullptr) return found->gr_gid;
    if (status != 0) return Error::from_errno(status, fmt::format("look up group '{}'", name_or_number));
    return Error{Errc::not_found, fmt::format("no group '{}' on this host", name_or_number)};
}

bool is_stderr_journal() {
    const auto stream = environment("JOURNAL_STREAM");
    struct stat status{};
    if (!stream || ::fstat(STDERR_FILENO, &status) != 0) return false;
    return *stream == fmt::format("{}:{}", status.st_dev, status.st_ino);
}

bool open_standard_streams() {
    for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
        if (::fcntl(stream, F_GETFD) >= 0) continue;
        // The lowest free number is this one: those below it are open.
        if (::open("/dev/null", O_RDWR) != stream) return false;
    }
    return true;
}

std::size_t stderr_columns() {
    winsize size{};
    constexpr std::size_t usual = 80;
    if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col < 2) return usual;
    return size.ws_col;
}

bool is_stdin_terminal() { return ::isatty(STDIN_FILENO) == 1; }
bool is_stdout_terminal() { return ::isatty(STDOUT_FILENO) == 1; }

bool is_stderr_terminal() { return ::isatty(STDERR_FILENO) == 1; }

}  // namespace guestmem
