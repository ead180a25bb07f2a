// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "guestmem/base/result.hpp"

/// The names in a template's folder, and of folders that are on their way.
///
/// Contract: names that begin with a dot are no templates: work that was not finished, or that is being removed.
/// Threads: any.

namespace guestmem {

inline constexpr const char* template_manifest_file = "manifest.json";
inline constexpr const char* template_image_file = "image";
inline constexpr const char* template_sums_file = "sums";
inline constexpr const char* template_chunks_file = "chunks";  ///< the index of a compressed image
inline constexpr const char* template_pages_file = "pages";    ///< which pages a difference has
inline constexpr const char* template_state_file = "state";
inline constexpr const char* forks_folder_name = "forks";
inline constexpr const char* making_prefix = ".making-";
inline constexpr const char* retired_prefix = ".retired-";

/// So many random bytes as hexadecimal digits.
[[nodiscard]] Result<std::string> random_hex(std::size_t count_bytes);
[[nodiscard]] std::uint64_t seconds_since_1970();

}  // namespace guestmem
