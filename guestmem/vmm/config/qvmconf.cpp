// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/qvmconf.hpp"

#include "guestmem/vmm/config/check.hpp"
#include "guestmem/vmm/config/parser.hpp"

namespace guestmem::vmm {
namespace {

Result<ConfigRead> finish(std::span<const Token> tokens, Sources& sources, Findings& findings) {
    Parsed parsed = parse_tokens(tokens, findings);
    check_configuration(parsed, findings);
    if (!findings.is_empty()) return findings.to_error();
    return ConfigRead{.config = std::move(parsed.config), .sources = std::move(sources)};
}

}  // namespace

Result<ConfigRead> read_text(std::string_view text, const std::string& file_name,
                             const SourceLoader& loader) {
    Sources sources;
    Findings findings{sources};
    const std::vector<Token> tokens = read_tokens_of_text(text, file_name, loader, sources, findings);
    return finish(tokens, sources, findings);
}

Result<ConfigRead> read_words(std::span<const std::string> words, const SourceLoader& loader) {
    Sources sources;
    Findings findings{sources};
    const std::vector<Token> tokens = read_tokens_of_words(words, loader, sources, findings);
    return finish(tokens, sources, findings);
}

}  // namespace guestmem::vmm
