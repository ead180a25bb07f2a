// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "guestmem/cli/report.hpp"
#include "guestmem/cli/share_options.hpp"
#include "guestmem/cli/share_service.hpp"

namespace guestmem::cli {
namespace {

Result<void> ring(ShareService& service, const std::string& share, const std::string& peer,
                  std::uint32_t vector, bool json) {
    const share::RingReply reply = GM_TRY(service.ring(share, peer, vector));
    if (json) {
        print(to_json(reply) + "\n");
        return {};
    }
    if (reply.rung.empty()) print("nobody is there\n");
    for (const std::uint32_t absent : reply.absent)
        print(fmt::format("peer {} is not there: the kick waits for the next holder of its slot\n", absent));
    return {};
}

Error not_ready(const RingOptions& options) {
    return Error{Errc::timed_out, fmt::format("share '{}': peer {} is not ready after {} s: nothing was rung",
                                              options.share, options.peer, options.timeout_seconds)};
}

/// False when the time has passed.
Result<bool> is_ready(ShareService& service, const RingOptions& options) {
    if (!options.has_to_wait) return true;
    return service.wait_ready(options.share, options.peer, options.ready_word, options.timeout_seconds);
}

Result<void> ring(const RingOptions& options) {
    ShareService service = GM_TRY(ShareService::connect(options.control));
    GM_TRY(service.check_ring(options.share, options.peer, options.vector));
    if (!GM_TRY(is_ready(service, options))) return not_ready(options);
    return ring(service, options.share, options.peer, options.vector, options.json);
}

Result<void> send(const SendOptions& options) {
    ShareService service = GM_TRY(ShareService::connect(options.control));
    // Everything that can be wrong with the kick is asked before the memory changes.
    GM_TRY(service.check_ring(options.share, options.peer, options.vector));
    if (!GM_TRY(is_ready(service, options))) return not_ready(options);
    std::string bytes = options.message;
    bytes.push_back('\0');
    GM_TRY(store(service, options.share, options.offset, bytes));
    return ring(service, options.share, options.peer, options.vector, options.json);
}

/// The time of --wait-ready is told as that of 'wait' is.
int code_of(const Error& error) {
    const int code = report(error);
    return error.code() == Errc::timed_out ? exit_timeout : code;
}

}  // namespace

int share_ring(const RingOptions& options) {
    const auto status = ring(options);
    return status ? exit_ok : code_of(status.error());
}

int share_send(const SendOptions& options) {
    const auto status = send(options);
    return status ? exit_ok : code_of(status.error());
}

}  // namespace guestmem::cli
