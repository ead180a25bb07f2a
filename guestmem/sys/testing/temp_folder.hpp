// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "guestmem/base/check.hpp"

/// A folder of its own for a test, gone with all its files when the test ends.
///
/// Contract: made in the system's folder for temporary files, mode 0700, under a short name: a socket's path
/// has room in it. What the test leaves in it is removed too; entries() says what that is.
/// Threads: any once made.
/// Example:
///     const TempFolder folder;
///     auto listener = UnixListener::create({.path = folder.path_of("socket")});

namespace guestmem::testing {

class TempFolder {
public:
    TempFolder() : path_((std::filesystem::temp_directory_path() / "guestmem-XXXXXX").string()) {
        GM_CHECK(::mkdtemp(path_.data()) != nullptr);
    }
    TempFolder(const TempFolder&) = delete;
    TempFolder& operator=(const TempFolder&) = delete;
    ~TempFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }

    [[nodiscard]] const std::string& path() const { return path_; }
    [[nodiscard]] std::string path_of(std::string_view name) const { return path_ + "/" + std::string{name}; }

    /// The names in it, sorted; a fault loop compares them.
    [[nodiscard]] std::vector<std::string> entries() const {
        std::vector<std::string> names;
        for (const auto& entry : std::filesystem::directory_iterator{path_})
            names.push_back(entry.path().filename().string());
        std::ranges::sort(names);
        return names;
    }

    /// Makes a file with that text, and says its path.
    std::string write(std::string_view name, std::string_view text) const {
        std::string path = path_of(name);
        std::ofstream{path, std::ios::binary} << text;
        return path;
    }
    [[nodiscard]] std::string read(std::string_view name) const {
        std::ifstream file{path_of(name), std::ios::binary};
        return {std::istreambuf_iterator<char>{file}, {}};
    }

private:
    std::string path_;
};

}  // namespace guestmem::testing
