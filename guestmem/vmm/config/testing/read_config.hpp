// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/vmm/config/qvmconf.hpp"

/// Configurations for tests: read from texts, with a loader whose files are texts, too.
///
/// Contract: complaint_of() gives the error of a text, or "no complaint". in_a_vm() adds what each VM needs, in front
/// of it: the text itself begins on line 4.
/// Threads: any.

namespace guestmem::vmm::testing {

using Files = std::map<std::string, std::string>;

inline SourceLoader loader_of(Files files) {
    return
        [files = std::move(files)](const std::string& path, std::size_t limit_bytes) -> Result<std::string> {
            const auto found = files.find(path);
            if (found == files.end())
                return Error{Errc::not_found, fmt::format("open {}: no such file", path)};
            if (found->second.size() > limit_bytes)
                return Error{Errc::out_of_range, fmt::format("{} is larger than {}", path, limit_bytes)};
            return found->second;
        };
}

inline Result<ConfigRead> read(std::string_view text, const Files& files = {}) {
    return read_text(text, "vm.qvmconf", loader_of(files));
}

inline std::string complaint_of(std::string_view text, const Files& files = {}) {
    const auto result = read(text, files);
    return result ? "no complaint" : result.error().message();
}

inline std::string complaint_of_words(const std::vector<std::string>& words, const Files& files = {}) {
    const auto result = read_words(words, loader_of(files));
    return result ? "no complaint" : result.error().message();
}

inline std::string in_a_vm(std::string_view text) {
    return fmt::format("system vm\nram 192M\nload kernel\n{}", text);
}

/// The plan of a text that has to be right; an empty one fails the test.
inline VmConfig plan_of(std::string_view text, const Files& files = {}) {
    const auto result = read(text, files);
    EXPECT_TRUE(result) << result.error().message();
    return result ? result->config : VmConfig{};
}

}  // namespace guestmem::vmm::testing
