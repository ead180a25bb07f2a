// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>

#include "guestmem/cli/dma_options.hpp"
#include "guestmem/cli/exit_codes.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/dma/discover/discover.hpp"
#include "guestmem/dma/report/inventory_json.hpp"
#include "guestmem/dma/report/inventory_svg.hpp"
#include "guestmem/dma/report/inventory_tree.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/memory_limits.hpp"
#include "guestmem/sys/sparse_file.hpp"

namespace guestmem::cli {
namespace {

/// By the same variables, in the same order, as the C library.
bool is_terminal_unicode() {
    for (const char* const name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
        const char* const value = std::getenv(name);
        if (value == nullptr || *value == '\0') continue;
        const std::string_view text{value};
        return text.find("UTF-8") != std::string_view::npos || text.find("utf8") != std::string_view::npos;
    }
    return false;
}

Result<void> show(const DmaDiscoverOptions& options) {
    const dma::Inventory inventory = GM_TRY(discover_machine(options));
    if (options.svg == "-") {
        print(to_svg(inventory));
        return {};
    }
    if (!options.svg.empty()) GM_TRY(write_result(options.svg, to_svg(inventory), false));
    if (options.json) {
        print(to_json(inventory));
    } else if (options.svg.empty()) {
        print(to_tree(inventory, {.is_unicode = is_terminal_unicode(),
                                  .has_bridges = options.has_bridges,
                                  .has_details = options.has_details}));
    }
    return {};
}

}  // namespace

Result<void> write_result(const std::string& path, std::string_view bytes, bool is_private) {
    const auto facts = path_facts(path);
    const auto link = is_link(path);
    if ((facts && facts->exists && facts->kind != FileKind::regular) || (link && *link))
        return Error{
            Errc::already_exists,
            fmt::format("{}: it is there, and is no ordinary file; name another file, or '-'", path)};
    if (!is_private) return write_text_file(path, bytes);
    if (facts && facts->exists) GM_TRY(remove_file(path));
    const Fd file = GM_TRY(open_file(path, OpenMode::create_exclusive));
    GM_TRY_CONTEXT(write_at(file.view(), 0, std::as_bytes(std::span{bytes})), path);
    return {};
}

Result<dma::Inventory> discover_machine(const DmaOptions& options) {
    const auto words = GM_TRY(dma::read_smmu_words(options.words, &read_text_file));
    const auto tree = GM_TRY(dma::open_host_tree(options.root));
    dma::Inventory inventory = GM_TRY(dma::discover(*tree, words));
    if (tree->is_live()) {
        const MemoryLimits limits = GM_TRY(memory_limits());
        if (limits.locked_bytes != no_memory_limit)
            inventory.settings.memory_lock_bytes = limits.locked_bytes;
    }
    return inventory;
}

int report_dma(const Error& error) {
    std::string text{error.message()};
    std::ranges::replace_if(text, [](char c) { return c != '\n' && (c < ' ' || c > '~'); }, '?');
    return report(Error{error.code(), text});
}

int dma_discover(const DmaDiscoverOptions& options) {
    const auto done = show(options);
    return done ? exit_ok : report_dma(done.error());
}

}  // namespace guestmem::cli
