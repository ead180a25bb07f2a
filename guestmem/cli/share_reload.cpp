// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "guestmem/cli/report.hpp"
#include "guestmem/cli/share_options.hpp"
#include "guestmem/cli/share_service.hpp"

namespace guestmem::cli {
namespace {

Result<void> reload(const ToolOptions& options) {
    ShareService service = GM_TRY(ShareService::connect(options.control));
    const std::string result = GM_TRY(service.call("share.reload", "{}"));
    if (options.json) {
        print(result + "\n");
        return {};
    }
    const share::ReloadReply reply = GM_TRY(share::parse_reload_reply(result));
    for (const std::string& change : reply.changes) print(to_printable(change) + "\n");
    if (reply.changes.empty()) print("nothing is different\n");
    return {};
}

Result<void> retire(const ToolOptions& options) {
    ShareService service = GM_TRY(ShareService::connect(options.control));
    const std::string result = GM_TRY(service.call("share.retire", "{}"));
    if (options.json) print(result + "\n");
    return {};
}

}  // namespace

int share_reload(const ToolOptions& options) {
    const auto status = reload(options);
    return status ? exit_ok : report(status.error());
}

int share_retire(const ToolOptions& options) {
    const auto status = retire(options);
    return status ? exit_ok : report(status.error());
}

}  // namespace guestmem::cli
