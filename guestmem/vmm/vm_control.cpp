// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/vm_control.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <map>
#include <string_view>
#include <utility>

#include "guestmem/mem/backends/options.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::vmm {
namespace {

constexpr std::string_view socket_prefix = "vm-";
constexpr std::string_view socket_suffix = ".control";

constexpr std::array<std::string_view, 10> known_calls{
    "vm.stat",         "vm.memory_map", "vm.pause",  "vm.resume",    "vm.stop",
    "vm.power_button", "vm.attach",     "vm.detach", "vm.dirty_log", "vm.dirty_harvest"};

/// Where the processors have their local APICs.
constexpr std::uint64_t local_apic_base = 0xfee0'0000;
constexpr std::uint64_t local_apic_bytes = 1UL << 20;

bool is_vm_name(std::string_view name) {
    const auto is_letter_or_digit = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    };
    return !name.empty() && name.size() <= max_name_bytes && is_letter_or_digit(name.front()) &&
           std::ranges::all_of(
               name, [&](char c) { return is_letter_or_digit(c) || c == '-' || c == '_' || c == '.'; });
}

void add_window(std::vector<GuestRange>& ranges, std::uint64_t first, std::uint64_t last) {
    const auto range = GuestRange::from_first_last(GuestAddress{first}, GuestAddress{last});
    if (range) ranges.push_back(*range);
}

/// Addresses that devices may come to: nobody plugs memory there.
std::vector<GuestRange> kept_ranges(const BoardPlan& plan) {
    std::vector<GuestRange> kept{plan.share_window};
    add_window(kept, local_apic_base, local_apic_base + local_apic_bytes - 1);
    const auto& windows = plan.pci_windows;
    if (plan.has_pci) {
        if (windows.memory32) add_window(kept, windows.memory32->first, windows.memory32->last);
        if (windows.memory64) add_window(kept, windows.memory64->first, windows.memory64->last);
    }
    for (const MemoryLine& line : plan.config().memory) {
        if (line.kind == MemoryKind::reserve) kept.insert(kept.end(), line.ranges.begin(), line.ranges.end());
    }
    return kept;
}

std::vector<GuestRange> device_ranges(const Machine& machine) {
    std::vector<GuestRange> ranges;
    const MachineFacts facts = machine.facts();
    for (const DeviceWindow& device : facts.devices) {
        const auto range = GuestRange::create(GuestAddress{device.first}, device.count);
        if (!device.is_port && range) ranges.push_back(*range);
    }
    return ranges;
}

std::string_view name_of(BackendKind kind) {
    switch (kind) {
        case BackendKind::ram: return "memory-backend-ram";
        case BackendKind::memfd: return "memory-backend-memfd";
        case BackendKind::shm: return "memory-backend-shm";
        case BackendKind::file: return "memory-backend-file";
        case BackendKind::physical: return "memory-backend-physical";
    }
    return "unknown";
}

PluggedShareReply reply_of(const PluggedShares::Plugged& plugged) {
    return {.share = plugged.share,
            .address = plugged.range.base().value(),
            .size_bytes = plugged.range.size_bytes(),
            .slot = plugged.slot,
            .is_read_only = plugged.is_read_only};
}

}  // namespace

VmControl::VmControl(Machine& machine, const BoardPlan& plan, std::function<void()> stop)
    : machine_(machine),
      plan_(plan),
      stop_(std::move(stop)),
      harvest_(machine.memory()),
      plugged_(machine.memory(), {.control = machine.share_control(),
                                  .window = plan.share_window,
                                  .kept = kept_ranges(plan),
                                  .busy = [&machine] { return device_ranges(machine); }}) {}

Result<control::Outcome> VmControl::answer(const PeerCredentials& caller, const control::Request& request) {
    if (caller.uid != 0 && caller.uid != own_user()) {
        return Error{Errc::permission_denied, EACCES,
                     fmt::format("uid {} is neither root nor the machine's user", caller.uid)};
    }
    if (std::ranges::find(known_calls, request.call) == known_calls.end())
        return Error{Errc::unsupported, ENOSYS, fmt::format("unknown call '{}'", request.call)};
    return control::Outcome{GM_TRY(act(request)), {}};
}

Result<std::string> VmControl::act(const control::Request& request) {
    const std::string& call = request.call;
    if (call == "vm.stat") return stat();
    if (call == "vm.memory_map") return memory_map(GM_TRY(parse_memory_map_call(request.arguments)));
    if (call == "vm.attach") return attach(GM_TRY(parse_attach_share_call(request.arguments)));
    if (call == "vm.detach") {
        const DetachShareCall detach = GM_TRY(parse_detach_share_call(request.arguments));
        GM_TRY(plugged_.detach(detach.share));
        return std::string{"{}"};
    }
    if (call == "vm.dirty_log") return switch_dirty_log(GM_TRY(parse_dirty_log_call(request.arguments)));
    if (call == "vm.dirty_harvest") return harvest(GM_TRY(parse_dirty_harvest_call(request.arguments)));
    if (call == "vm.stop") {
        stop_();
        return std::string{"{}"};
    }
    if (call == "vm.power_button") {
        machine_.press_power_button();
        return std::string{"{}"};
    }
    return answer_state(call);
}

Result<std::string> VmControl::answer_state(const std::string& call) {
    const bool is_wanted_paused = call == "vm.pause";
    const bool has_changed = machine_.is_paused() != is_wanted_paused;
    if (has_changed && is_wanted_paused) machine_.pause();
    if (has_changed && !is_wanted_paused) machine_.resume();
    return to_json(StateReply{.state = is_wanted_paused ? "paused" : "running", .has_changed = has_changed});
}

std::string VmControl::stat() const {
    MachineFacts facts = machine_.facts();
    VmStatus status;
    status.name = plan_.config().system.value;
    status.pid = own_process();
    status.state = machine_.is_paused() ? "paused" : "running";
    for (const PlannedMemory& memory : plan_.memory) {
        if (memory.is_rom) continue;
        for (const GuestRange& range : memory.ranges) status.memory_bytes += range.size_bytes();
    }
    status.count_slots = machine_.count_slots();
    status.has_dirty_log = machine_.memory().is_logging();
    status.share_control = machine_.share_control();
    status.processors = std::move(facts.exits);
    status.devices = std::move(facts.devices);
    status.connections = std::move(facts.connections);
    for (const PluggedShares::Plugged& plugged : plugged_.list()) status.plugged.push_back(reply_of(plugged));
    return to_json(status);
}

std::string VmControl::backend_of(const Region& region) const {
    for (const PlannedMemory& memory : plan_.memory) {
        const bool is_it = std::ranges::any_of(
            memory.ranges, [&](const GuestRange& range) { return range == region.range(); });
        if (is_it) return std::string{name_of(memory.backend.options.kind)};
    }
    return "share";
}

Result<std::string> VmControl::memory_map(const MemoryMapCall& call) const {
    const auto map = machine_.memory().map();
    std::map<std::uint64_t, KvmSlot> slots;
    for (const KvmSlotEntry& entry : machine_.memory().slots())
        slots.emplace(entry.slot.guest_phys_addr, entry.slot);
    MemoryMapReply reply;
    for (const auto& region : map->regions()) {
        const std::uint64_t base = region->range().base().value();
        if (base < call.from) continue;
        if (reply.regions.size() == max_listed_regions) {
            reply.next = base;
            break;
        }
        ListedRegion& listed = reply.regions.emplace_back();
        listed.name = region->name();
        listed.kind = std::string{to_string(region->kind())};
        listed.backend = backend_of(*region);
        listed.address = base;
        listed.size_bytes = region->range().size_bytes();
        const auto slot = slots.find(base);
        if (slot == slots.end()) continue;
        listed.slot = slot->second.slot;
        listed.is_logged = (slot->second.flags & kvm_mem_log_dirty_pages) != 0;
    }
    return to_json(reply);
}

Result<std::string> VmControl::attach(const AttachShareCall& call) {
    return to_json(reply_of(GM_TRY(plugged_.attach(call.share, call.address))));
}

Result<std::string> VmControl::switch_dirty_log(const DirtyLogCall& call) {
    if (call.is_on) {
        GM_TRY(machine_.memory().start_dirty_log());
    } else {
        harvest_.forget();
        GM_TRY(machine_.memory().stop_dirty_log());
    }
    return std::string{"{}"};
}

Result<std::string> VmControl::harvest(const DirtyHarvestCall& call) {
    const DirtyHarvest::Part part = GM_TRY(
        harvest_.next({.limit = call.limit.value_or(DirtyHarvest::max_ranges), .confirm = call.confirm}));
    DirtyHarvestReply reply;
    for (const GuestRange& range : part.ranges)
        reply.ranges.emplace_back(range.base().value(), range.size_bytes());
    reply.ticket = part.ticket;
    reply.has_more = part.has_more;
    return to_json(reply);
}

Result<std::string> vm_control_path(const std::string& folder, const std::string& name) {
    if (!is_vm_name(name)) {
        return Error{Errc::invalid_argument,
                     fmt::format("that is no name of a machine: 1 to {} letters, digits, '-', '_' and '.', a "
                                 "letter or digit first",
                                 max_name_bytes)};
    }
    return fmt::format("{}/{}{}{}", folder, socket_prefix, name, socket_suffix);
}

std::optional<std::string> vm_name_of(std::string_view file_name) {
    if (!file_name.starts_with(socket_prefix) || !file_name.ends_with(socket_suffix) ||
        file_name.size() <= socket_prefix.size() + socket_suffix.size())
        return std::nullopt;
    file_name.remove_prefix(socket_prefix.size());
    file_name.remove_suffix(socket_suffix.size());
    if (!is_vm_name(file_name)) return std::nullopt;
    return std::string{file_name};
}

}  // namespace guestmem::vmm
