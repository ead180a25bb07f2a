// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "guestmem/base/sizes.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/cli/share_options.hpp"
#include "guestmem/cli/share_service.hpp"

namespace guestmem::cli {
namespace {

Result<void> list(const ToolOptions& options) {
    ShareService service = GM_TRY(ShareService::connect(options.control));
    const std::string result = GM_TRY(service.call("share.list", "{}"));
    if (options.json) {
        print(result + "\n");
        return {};
    }
    const auto summary = GM_TRY(share::parse_service_summary(result));
    print(fmt::format("{:<31} {:>8} {:>7} {:>5} {:>7} {:>5}\n", "NAME", "SIZE", "VECTORS", "SLOTS", "IDS",
                      "PEERS"));
    for (const auto& share : summary.shares)
        print(fmt::format("{:<31} {:>8} {:>7} {:>5} {:>7} {:>5}\n", share.name, format_size(share.size_bytes),
                          share.vectors, share.slots, share.ids, share.count_peers));
    // A service that was never followed by another one and has no keeper has nothing to tell.
    if (summary.generation > 1 || !summary.keeper.empty())
        print(fmt::format("\nservice {}, instance {}, {}\n", summary.pid, summary.generation,
                          summary.keeper.empty() ? "no keeper" : "held by the " + summary.keeper));
    return {};
}

}  // namespace

int share_list(const ToolOptions& options) {
    const auto status = list(options);
    return status ? exit_ok : report(status.error());
}

}  // namespace guestmem::cli
