// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "guestmem/base/sizes.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/cli/vm_client.hpp"
#include "guestmem/vmm/vm_calls.hpp"

namespace guestmem::cli {
namespace {

Result<void> attach(const VmAttachOptions& options) {
    const vmm::AttachShareCall call{.share = options.share, .address = options.address};
    VmClient client = GM_TRY(VmClient::connect(options));
    const std::string result = GM_TRY(client.call("vm.attach", to_json(call)));
    if (options.json) {
        print(result + "\n");
        return {};
    }
    const auto reply = GM_TRY(vmm::parse_plugged_share_reply(result));
    print(fmt::format("{} is at {:#x}, {} bytes ({}), slot {}{}\n", to_printable(reply.share), reply.address,
                      reply.size_bytes, format_size(reply.size_bytes), reply.slot,
                      reply.is_read_only ? ", read only" : ""));
    return {};
}

Result<void> detach(const VmDetachOptions& options) {
    VmClient client = GM_TRY(VmClient::connect(options));
    const std::string result =
        GM_TRY(client.call("vm.detach", to_json(vmm::DetachShareCall{.share = options.share})));
    if (options.json) print(result + "\n");
    return {};
}

/// Until the machine has no more to tell. Part by part: the last one is confirmed, too, by a call that begins the next
/// round, whose first part stays for the next harvest.
Result<void> harvest(const VmDirtyOptions& options, VmClient& client) {
    auto all = nlohmann::json::array();
    vmm::DirtyHarvestCall call;
    for (;;) {
        const std::string result = GM_TRY(client.call("vm.dirty_harvest", to_json(call)));
        const auto reply = GM_TRY(vmm::parse_dirty_harvest_reply(result));
        for (const auto& [address, size_bytes] : reply.ranges) {
            if (options.json) {
                all.push_back(nlohmann::json::array({address, size_bytes}));
            } else {
                print(fmt::format("{:#014x} {:>12}\n", address, size_bytes));
            }
        }
        call.confirm = reply.ticket;
        if (!reply.has_more) break;
    }
    if (options.json) print(nlohmann::json{{"ranges", std::move(all)}}.dump() + "\n");
    // What was printed is taken.
    call.limit = 1;
    GM_TRY(client.call("vm.dirty_harvest", to_json(call)));
    return {};
}

Result<void> dirty(const VmDirtyOptions& options) {
    VmClient client = GM_TRY(VmClient::connect(options));
    if (options.verb == "harvest") return harvest(options, client);
    const std::string result =
        GM_TRY(client.call("vm.dirty_log", to_json(vmm::DirtyLogCall{.is_on = options.verb == "on"})));
    if (options.json) print(result + "\n");
    return {};
}

}  // namespace

int vm_attach(const VmAttachOptions& options) { return finish_vm_command(attach(options)); }
int vm_detach(const VmDetachOptions& options) { return finish_vm_command(detach(options)); }
int vm_dirty(const VmDirtyOptions& options) { return finish_vm_command(dirty(options)); }

}  // namespace guestmem::cli
