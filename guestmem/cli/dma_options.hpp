// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/dma/inventory.hpp"

/// What the words of `guestmem dma ...` say, as plain values: dma_commands.cpp fills them in, the other dma_*.cpp act
/// on them.
///
/// Threads: any; plain values.

namespace guestmem::cli {

/// Common to all that look at a machine.
struct DmaOptions {
    std::string root = "/";          ///< or a captured folder or archive
    std::vector<std::string> words;  ///< the user's own, as smmuman has them
    bool json = false;
};

struct DmaDiscoverOptions : DmaOptions {
    std::string svg;  ///< a file for the picture, "-" for standard output
    bool has_bridges = false;
    bool has_details = false;
};

struct DmaPlanOptions : DmaOptions {
    std::string config;
    std::string vm;
    bool has_all = false;  ///< every mapping, however many
};

struct DmaCaptureOptions {
    std::string archive;
    std::string root = "/";
    bool is_script = false;
    bool is_list = false;
};

int dma_discover(const DmaDiscoverOptions& options);
int dma_check(const DmaOptions& options);
int dma_plan(const DmaPlanOptions& options);
int dma_capture(const DmaCaptureOptions& options);

/// Writes a result; a device node, a pipe or a link at its place stays what it is, and that is an error.
[[nodiscard]] Result<void> write_result(const std::string& path, std::string_view bytes, bool is_private);

/// The machine that the options name, as the words in them have it.
[[nodiscard]] Result<dma::Inventory> discover_machine(const DmaOptions& options);
/// report(), with '?' for what is no printable ASCII: errors quote files and names that anybody may have made.
int report_dma(const Error& error);

}  // namespace guestmem::cli
