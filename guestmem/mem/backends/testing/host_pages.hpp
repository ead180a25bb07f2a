// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/fd.hpp"

/// What the kernel says of mapped pages, and huge pages for a while.
///
/// Contract: asked behind the library's back, of the kernel alone.
/// Threads: one at a time.

namespace guestmem::testing {

/// How many of these pages are in memory; nothing when some are not mapped at all.
inline std::optional<std::uint64_t> count_resident_pages(std::span<const std::byte> bytes) {
    std::vector<unsigned char> pages((bytes.size() + page_size_bytes - 1) / page_size_bytes);
    if (::mincore(const_cast<std::byte*>(bytes.data()), bytes.size(), pages.data()) != 0) return std::nullopt;
    std::uint64_t count = 0;
    for (const unsigned char page : pages) count += page & 1U;
    return count;
}

/// The two-letter flags of the mapping that begins there ("rd wr sh mr"), see proc_pid_smaps(5).
inline std::vector<std::string> flags_of_mapping(const std::byte* begin) {
    std::ostringstream prefix;
    prefix << std::hex << reinterpret_cast<std::uintptr_t>(begin) << '-';
    std::ifstream smaps{"/proc/self/smaps"};
    bool is_it = false;
    for (std::string line; std::getline(smaps, line);) {
        if (line.starts_with(prefix.str())) is_it = true;
        constexpr std::string_view key = "VmFlags:";
        if (!is_it || !line.starts_with(key)) continue;
        std::istringstream words{line.substr(key.size())};
        std::vector<std::string> flags;
        for (std::string flag; words >> flag;) flags.push_back(flag);
        return flags;
    }
    return {};
}

/// Whether this process maps something of that name.
inline bool is_mapped(std::string_view name) {
    std::ifstream maps{"/proc/self/maps"};
    for (std::string line; std::getline(maps, line);)
        if (line.contains(name)) return true;
    return false;
}

/// Some huge pages of 2 MiB more than there were, and back. Tests that run at the same time take turns.
class HugePages {
public:
    explicit HugePages(std::uint64_t count)
        : lock_(::open("/tmp/guestmem-huge-pages.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
        if (::geteuid() != 0 || !lock_.is_open() || ::flock(lock_.view().number(), LOCK_EX) != 0) return;
        before_ = number_in("nr_hugepages");
        if (!before_) return;
        set(*before_ + count);
        is_there_ = number_in("free_hugepages").value_or(0) >= count;
    }
    HugePages(const HugePages&) = delete;
    HugePages& operator=(const HugePages&) = delete;
    ~HugePages() {
        if (before_) set(*before_);
    }

    /// False for a user who may not, a kernel without them, and memory that is too torn.
    [[nodiscard]] bool is_there() const { return is_there_; }
    static std::optional<std::uint64_t> number_in(std::string_view file) {
        std::ifstream in{folder + std::string{file}};
        std::uint64_t number = 0;
        if (!(in >> number)) return std::nullopt;
        return number;
    }

private:
    static inline const std::string folder = "/sys/kernel/mm/hugepages/hugepages-2048kB/";
    static void set(std::uint64_t number) { std::ofstream{folder + "nr_hugepages"} << number; }

    Fd lock_;
    std::optional<std::uint64_t> before_;
    bool is_there_ = false;
};

}  // namespace guestmem::testing
