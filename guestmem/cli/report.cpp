// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/report.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>

#include "guestmem/cli/exit_codes.hpp"

namespace guestmem::cli {

int report(const Error& error) {
    fmt::print(stderr, "guestmem: {}\n", error.message());
    return error.code() == Errc::timed_out ? exit_timeout : exit_failed;
}

void print(std::string_view text) {
    if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) return;
    fmt::print(stderr, "guestmem: standard output takes no more; what was printed is not whole\n");
    std::_Exit(exit_failed);
}

std::string to_printable(std::string_view bytes) {
    std::string shown;
    for (const char c : bytes) {
        if (c == '\\') {
            shown += "\\\\";
        } else if (c >= ' ' && c <= '~') {
            shown += c;
        } else {
            shown += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
        }
    }
    return shown;
}

}  // namespace guestmem::cli
