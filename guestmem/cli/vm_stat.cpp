// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "guestmem/base/sizes.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/cli/vm_client.hpp"
#include "guestmem/vmm/vm_calls.hpp"

namespace guestmem::cli {
namespace {

void print_exits(const vmm::VmStatus& status) {
    for (std::size_t number = 0; number < status.processors.size(); ++number) {
        std::string text;
        for (std::size_t kind = 0; kind < vmm::count_exit_kinds; ++kind) {
            const std::uint64_t count = status.processors[number][kind];
            if (count != 0) text += fmt::format("  {} {}", vmm::exit_names[kind], count);
        }
        print(fmt::format("cpu      {}{}\n", number, text.empty() ? "  no exits" : text));
    }
}

void print_status(const vmm::VmStatus& status) {
    print(fmt::format("machine  {}, pid {}, {}\n", to_printable(status.name), status.pid,
                      to_printable(status.state)));
    print(fmt::format("memory   {} bytes ({}), {} slots, dirty log {}\n", status.memory_bytes,
                      format_size(status.memory_bytes), status.count_slots,
                      status.has_dirty_log ? "on" : "off"));
    print_exits(status);
    for (const auto& device : status.devices) {
        print(fmt::format("device   {:<20} {:<6} {:#x} to {:#x}\n", to_printable(device.name),
                          device.is_port ? "port" : "memory", device.first,
                          device.first + (device.count - 1)));
    }
    if (!status.share_control.empty())
        print(fmt::format("shares   of {}\n", to_printable(status.share_control)));
    for (const auto& one : status.connections) {
        print(fmt::format("share    {}, by {}, {}{}\n", to_printable(one.share), to_printable(one.device),
                          format_size(one.size_bytes), one.slot ? fmt::format(", slot {}", *one.slot) : ""));
    }
    for (const auto& one : status.plugged) {
        print(fmt::format("share    {}, by an operator, {} at {:#x}, slot {}{}\n", to_printable(one.share),
                          format_size(one.size_bytes), one.address, one.slot,
                          one.is_read_only ? ", read only" : ""));
    }
}

Result<void> stat(const VmOptions& options) {
    VmClient client = GM_TRY(VmClient::connect(options));
    const std::string result = GM_TRY(client.call("vm.stat"));
    if (options.json) {
        print(result + "\n");
        return {};
    }
    print_status(GM_TRY(vmm::parse_vm_status(result)));
    return {};
}

std::string line_of(const vmm::ListedRegion& region) {
    return fmt::format("{:#014x} to {:#014x} {:>8}  {:<9} {:>5} {:<6} {:<22} {}\n", region.address,
                       region.address + (region.size_bytes - 1), format_size(region.size_bytes),
                       to_printable(region.kind), region.slot ? std::to_string(*region.slot) : "-",
                       region.is_logged ? "logged" : "", to_printable(region.backend),
                       to_printable(region.name));
}

Result<void> map(const VmOptions& options) {
    VmClient client = GM_TRY(VmClient::connect(options));
    auto all = nlohmann::json::array();
    std::uint64_t from = 0;
    for (;;) {
        const std::string result =
            GM_TRY(client.call("vm.memory_map", to_json(vmm::MemoryMapCall{.from = from})));
        const vmm::MemoryMapReply reply = GM_TRY(vmm::parse_memory_map_reply(result));
        if (options.json) {
            const auto part = nlohmann::json::parse(result)["regions"];
            all.insert(all.end(), part.begin(), part.end());
        } else {
            for (const auto& region : reply.regions) print(line_of(region));
        }
        // An answer that leads backwards would have no end.
        if (!reply.next || *reply.next <= from) break;
        from = *reply.next;
    }
    if (options.json) print(nlohmann::json{{"regions", std::move(all)}}.dump() + "\n");
    return {};
}

}  // namespace

int vm_stat(const VmOptions& options) { return finish_vm_command(stat(options)); }
int vm_map(const VmOptions& options) { return finish_vm_command(map(options)); }

}  // namespace guestmem::cli
