// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "guestmem/cli/dma_options.hpp"
#include "guestmem/cli/exit_codes.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/dma/discover/capture.hpp"
#include "guestmem/dma/discover/capture_script.hpp"
#include "guestmem/dma/discover/host_tree.hpp"
#include "guestmem/sys/fd.hpp"

namespace guestmem::cli {
namespace {

Result<void> write_archive(const DmaCaptureOptions& options) {
    const auto tree = GM_TRY(dma::open_host_tree(options.root));
    const dma::Capture captured = GM_TRY(dma::capture(*tree));
    if (options.archive == "-") {
        print(captured.archive);
    } else {
        GM_TRY(write_result(options.archive, captured.archive, true));
    }
    for (const std::string& path : captured.unreadable)
        fmt::print(stderr, "guestmem: not readable: {}\n", to_printable(path));
    if (!captured.unreadable.empty())
        fmt::print(stderr, "guestmem: {} files are missing in the archive; root may read them\n",
                   captured.unreadable.size());
    if (options.archive == "-") return {};
    print(fmt::format("{}: {} files and links, {} bytes\n", to_printable(options.archive),
                      captured.count_entries, captured.archive.size()));
    return {};
}

}  // namespace

int dma_capture(const DmaCaptureOptions& options) {
    if (options.is_script) {
        print(dma::capture_script());
        return exit_ok;
    }
    if (options.is_list) {
        for (const dma::CapturePattern& pattern : dma::capture_patterns())
            print(fmt::format("{:<60} {}\n", pattern.path, pattern.why));
        return exit_ok;
    }
    if (options.archive.empty()) {
        fmt::print(stderr,
                   "guestmem: the archive to write is missing, as in: guestmem dma capture machine.tar\n");
        return exit_usage;
    }
    const auto done = write_archive(options);
    return done ? exit_ok : report_dma(done.error());
}

}  // namespace guestmem::cli
