// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "guestmem/cli/report.hpp"
#include "guestmem/cli/share_options.hpp"
#include "guestmem/cli/share_service.hpp"
#include "guestmem/sys/fd.hpp"

namespace guestmem::cli {
namespace {

Result<void> write(const WriteOptions& options) {
    ShareService service = GM_TRY(ShareService::connect(options.control));
    std::string bytes;
    if (options.message) {
        bytes = *options.message;
        bytes.push_back('\0');
    } else {
        // Read whole before the first byte is stored; no more than the share can hold, also of an endless file.
        const std::uint64_t size = GM_TRY(service.stat(options.share)).summary.size_bytes;
        bytes = GM_TRY(read_text_file(*options.file, size));
    }
    GM_TRY(store(service, options.share, options.offset, bytes));
    if (options.json) print(fmt::format("{{\"written\":{},\"offset\":{}}}\n", bytes.size(), options.offset));
    return {};
}

}  // namespace

int share_write(const WriteOptions& options) {
    if (!options.message && !options.file) {
        fmt::print(stderr, "guestmem: write what? Give --message TEXT or --file FILE\n");
        return exit_usage;
    }
    const auto status = write(options);
    return status ? exit_ok : report(status.error());
}

}  // namespace guestmem::cli
