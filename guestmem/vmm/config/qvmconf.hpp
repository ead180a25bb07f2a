// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "guestmem/base/result.hpp"
#include "guestmem/vmm/config/lexer.hpp"
#include "guestmem/vmm/config/vm_config.hpp"

/// The door of this room: a `.qvmconf` text, or the words of a command line, becomes a checked VmConfig.
///
/// Concepts: lexer.hpp makes tokens, parser.hpp gives them meaning by the tables of schema.hpp, check.hpp looks at the
/// whole. explain.hpp prints a plan again.
/// Contract: any bytes give a plan or an error (invalid_argument) whose message names every mistake with file, line and
/// column, the line, a caret and what to write instead. Nothing is opened but by the loader; no memory is made. A plan
/// comes with its sources, so that Findings of sources.hpp can name a line later.
/// Limits: those of lexer.hpp and vm_config.hpp.
/// Threads: any.
/// Example:
///     const ConfigRead read = GM_TRY(read_words(words, &read_text_file));

namespace guestmem::vmm {

struct ConfigRead {
    VmConfig config;
    Sources sources;
};

[[nodiscard]] Result<ConfigRead> read_text(std::string_view text, const std::string& file_name,
                                           const SourceLoader& loader);
/// Words such as {"@cluster.qvmconf", "ram", "64M"}.
[[nodiscard]] Result<ConfigRead> read_words(std::span<const std::string> words, const SourceLoader& loader);

}  // namespace guestmem::vmm
