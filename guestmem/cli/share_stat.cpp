// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "guestmem/base/sizes.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/cli/share_options.hpp"
#include "guestmem/cli/share_service.hpp"

namespace guestmem::cli {
namespace {

/// What a peer may not do, behind its state.
std::string remarks_on(const share::PeerStatus& peer) {
    std::string remarks;
    if (!peer.may_notify) remarks += " may not notify;";
    if (peer.is_read_only) remarks += " read only;";
    if (peer.can_bypass_read_only) remarks += " which does not hold for its uid;";
    if (peer.is_revoked) remarks += " has lost its right, and keeps what it has mapped;";
    if (!remarks.empty()) remarks.back() = ' ';
    while (remarks.ends_with(' ')) remarks.pop_back();
    return remarks;
}

void print_status(const share::ShareStatus& status) {
    const share::ShareSummary& share = status.summary;
    print(fmt::format("share    {}\n", share.name));
    print(fmt::format("memory   {} bytes ({}), mapped as {}, sealed: {}\n", share.size_bytes,
                      format_size(share.size_bytes), format_size(share.extent_bytes),
                      status.seals.empty() ? "no" : fmt::format("{}", fmt::join(status.seals, " "))));
    if (share.origin != "file" || share.backing != "memfd" || share.is_kept || share.stage != "ready")
        print(fmt::format("origin   {}{}, backing {}, {} when the last peer leaves{}\n", share.origin,
                          share.maker.empty() ? "" : fmt::format(" (made by vm {})", share.maker),
                          share.backing,
                          share.origin == "dynamic" ? "gone"
                          : share.is_kept           ? "kept"
                                                    : "cleared",
                          share.stage == "retired" ? "; takes no newcomers"
                          : share.stage == "blank" ? "; being cleared"
                                                   : ""));
    print(fmt::format("doorbell {} vectors, {} slots, {} ids\n", share.vectors, share.slots, share.ids));
    for (const auto& door : status.doors)
        print(fmt::format("socket   {}{}{}\n", door.path, door.vm.empty() ? "" : "  vm " + door.vm,
                          door.slots.empty() ? "" : fmt::format("  slot {}", fmt::join(door.slots, ", "))));
    if (status.peers.empty()) print("nobody is there\n");
    if (!status.peers.empty())
        print(fmt::format("{:>5} {:<31} {:>8} {:>7} {:<8}\n", "SLOT", "VM", "PID", "UID", "STATE"));
    for (const auto& peer : status.peers)
        print(fmt::format("{:>5} {:<31} {:>8} {:>7} {:<8}{}\n", peer.slot,
                          !peer.vm.empty() ? peer.vm
                          : peer.is_tool   ? "(host tool)"
                                           : "",
                          peer.pid, peer.uid, peer.is_joined ? "joined" : "joining", remarks_on(peer)));
    for (const auto& slot : status.pending)
        for (std::size_t vector = 0; vector < slot.per_vector.size(); ++vector)
            if (slot.per_vector[vector] != 0)
                print(fmt::format("pending  slot {} vector {}: {} kicks\n", slot.slot, vector,
                                  slot.per_vector[vector]));
}

Result<void> stat(const StatOptions& options) {
    ShareService service = GM_TRY(ShareService::connect(options.control));
    const std::string result = GM_TRY(service.call("share.stat", to_json(share::NamedCall{options.share})));
    if (options.json) {
        print(result + "\n");
        return {};
    }
    print_status(GM_TRY(share::parse_share_status(result)));
    return {};
}

}  // namespace

int share_stat(const StatOptions& options) {
    const auto status = stat(options);
    return status ? exit_ok : report(status.error());
}

}  // namespace guestmem::cli
