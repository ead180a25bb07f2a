// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <ostream>
#include <string>
#include <system_error>
#include <vector>

/// What this process holds of the kernel: open descriptors and shared mappings. Taken before and after, compared.
///
/// Concepts: a descriptor is known by what it leads to ("socket:[4711]"), so a failed comparison says what was
/// left open. Only shared mappings count: every mapping of this library is one, while the heap and a sanitizer's
/// shadow grow private ones whenever they like.
/// Threads: any; other threads must not open or close anything meanwhile.
/// Example:
///     const Resources before = Resources::look();
///     { auto memory = create_sealed_memory({.name = "m", .size_bytes = 4096}); }
///     EXPECT_EQ(Resources::look(), before);

namespace guestmem::testing {

struct Resources {
    std::vector<std::string> descriptors;
    std::vector<std::string> mappings;

    [[nodiscard]] static Resources look() {
        Resources found;
        for (const auto& entry : std::filesystem::directory_iterator{"/proc/self/fd"}) {
            std::error_code gone;
            const std::string target = std::filesystem::read_symlink(entry.path(), gone).string();
            if (!gone && !is_own_look(target)) found.descriptors.push_back(target);
        }
        std::ranges::sort(found.descriptors);
        std::ifstream maps{"/proc/self/maps"};
        for (std::string line; std::getline(maps, line);)
            if (const std::size_t blank = line.find(' ');
                blank != std::string::npos && line.size() > blank + 4 && line[blank + 4] == 's')
                found.mappings.push_back(line);
        return found;
    }

    friend bool operator==(const Resources&, const Resources&) = default;
    friend std::ostream& operator<<(std::ostream& out, const Resources& resources) {
        for (const std::string& descriptor : resources.descriptors) out << "\n  descriptor " << descriptor;
        for (const std::string& mapping : resources.mappings) out << "\n  mapping " << mapping;
        return out;
    }

private:
    /// The folder that is read here is a descriptor too.
    static bool is_own_look(const std::string& target) {
        return target.starts_with("/proc/") && target.ends_with("/fd");
    }
};

}  // namespace guestmem::testing
