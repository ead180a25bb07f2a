// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <set>
#include <span>

#include "guestmem/vmm/config/lexer.hpp"
#include "guestmem/vmm/config/schema.hpp"
#include "guestmem/vmm/config/vm_config.hpp"

/// Turns tokens into what they say, word by word; check.hpp looks at the whole.
///
/// Contract: any tokens give a VmConfig, and findings about each word that is unknown, in the wrong context, twice, or
/// has an argument that it cannot have. After a mistake the parser goes on at the next line or word that it knows. A
/// word that QNX documents and this program does not do is told apart from a typing error, which gets the closest
/// word. `broken` names the words of which a use was dropped, so that nobody reports the gap as a second mistake.
/// Known holes: behind a device or `pass` that is not known or not done, up to the next known word of the machine, no
/// word is judged: whose it is cannot be known.
/// Limits: those of vm_config.hpp, each a finding.
/// Threads: any.

namespace guestmem::vmm {

struct Parsed {
    VmConfig config;
    std::set<Word> broken;
};

[[nodiscard]] Parsed parse_tokens(std::span<const Token> tokens, Findings& findings);

}  // namespace guestmem::vmm
