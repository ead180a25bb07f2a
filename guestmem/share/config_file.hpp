// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "guestmem/base/result.hpp"
#include "guestmem/share/config.hpp"

/// Turns a TOML text into a checked ServiceConfig and nothing else. docs/guide/share.md shows the keys.
///
/// Contract: any text gives a config or an error whose message names every mistake with file:line:column, the
/// line, a caret and what to write instead (a syntax error hides what follows it). Unknown keys are mistakes,
/// with the known key that is closest. Users and groups are looked up on this host; folders must exist.
/// Limits: max_config_bytes, max_shares, max_vms.
/// Threads: any.

namespace guestmem::share {

inline constexpr std::size_t max_config_bytes = 1024 * 1024;

[[nodiscard]] Result<ServiceConfig> parse_config(std::string_view text, const std::string& file_name);
[[nodiscard]] Result<ServiceConfig> read_config_file(const std::string& path);

}  // namespace guestmem::share
