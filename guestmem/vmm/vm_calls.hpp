// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/vmm/machine_facts.hpp"

/// A machine's calls on the control protocol, as types: what the tools ask and what they get.
/// docs/protocols/vm-control.md is the specification.
///
/// Contract: parse_* take any JSON object and never abort or throw; a missing or wrong field is an error that names it.
/// Fields that this version does not know are passed over. What to_json() makes of a reply fits into an answer of the
/// protocol when the lists keep to their limits.
/// Limits: max_listed_regions in a reply of vm.memory_map, DirtyHarvest::max_ranges in one of vm.dirty_harvest.
/// Threads: any.

namespace guestmem::vmm {

/// Some 200 bytes each, of an answer's 1 MiB.
inline constexpr std::size_t max_listed_regions = 4096;

/// KvmExit::Kind, as the protocol names them.
inline constexpr std::array<std::string_view, count_exit_kinds> exit_names{
    "io",       "mmio",        "halt",   "end_of_interrupt", "window_open",
    "shutdown", "interrupted", "failed", "system_reset",     "system_power_off"};

struct MemoryMapCall {
    std::uint64_t from = 0;
};

struct AttachShareCall {
    std::string share;
    std::optional<std::uint64_t> address;
};

struct DetachShareCall {
    std::string share;
};

struct DirtyLogCall {
    bool is_on = false;
};

struct DirtyHarvestCall {
    std::optional<std::uint64_t> limit;
    std::optional<std::uint64_t> confirm;
};

struct StateReply {
    std::string state;         ///< "running" or "paused"
    bool has_changed = false;  ///< by this call
};

struct PluggedShareReply {
    std::string share;
    std::uint64_t address = 0;
    std::uint64_t size_bytes = 0;
    std::uint32_t slot = 0;
    bool is_read_only = false;
};

struct VmStatus {
    std::string name;
    std::int32_t pid = 0;
    std::string state;
    std::uint64_t memory_bytes = 0;  ///< RAM of the configuration
    std::uint64_t count_slots = 0;
    bool has_dirty_log = false;
    std::string share_control;  ///< of the share service; empty: there is none
    std::vector<ExitCounts> processors;
    std::vector<DeviceWindow> devices;
    std::vector<ShareConnection> connections;
    std::vector<PluggedShareReply> plugged;
};

struct ListedRegion {
    std::string name;
    std::string kind;     ///< "ram", "read-only", "rom"
    std::string backend;  ///< "memory-backend-memfd", or "share"
    std::uint64_t address = 0;
    std::uint64_t size_bytes = 0;
    std::optional<std::uint32_t> slot = std::nullopt;  ///< of KVM
    bool is_logged = false;
};

struct MemoryMapReply {
    std::vector<ListedRegion> regions;
    std::optional<std::uint64_t> next;  ///< ask again from here
};

struct DirtyHarvestReply {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;  ///< address, bytes
    std::uint64_t ticket = 0;
    bool has_more = false;
};

[[nodiscard]] Result<MemoryMapCall> parse_memory_map_call(std::string_view arguments);
[[nodiscard]] Result<AttachShareCall> parse_attach_share_call(std::string_view arguments);
[[nodiscard]] Result<DetachShareCall> parse_detach_share_call(std::string_view arguments);
[[nodiscard]] Result<DirtyLogCall> parse_dirty_log_call(std::string_view arguments);
[[nodiscard]] Result<DirtyHarvestCall> parse_dirty_harvest_call(std::string_view arguments);
[[nodiscard]] Result<StateReply> parse_state_reply(std::string_view result);
[[nodiscard]] Result<PluggedShareReply> parse_plugged_share_reply(std::string_view result);
[[nodiscard]] Result<VmStatus> parse_vm_status(std::string_view result);
[[nodiscard]] Result<MemoryMapReply> parse_memory_map_reply(std::string_view result);
[[nodiscard]] Result<DirtyHarvestReply> parse_dirty_harvest_reply(std::string_view result);

[[nodiscard]] std::string to_json(const MemoryMapCall& call);
[[nodiscard]] std::string to_json(const AttachShareCall& call);
[[nodiscard]] std::string to_json(const DetachShareCall& call);
[[nodiscard]] std::string to_json(const DirtyLogCall& call);
[[nodiscard]] std::string to_json(const DirtyHarvestCall& call);
[[nodiscard]] std::string to_json(const StateReply& reply);
[[nodiscard]] std::string to_json(const PluggedShareReply& reply);
[[nodiscard]] std::string to_json(const VmStatus& status);
[[nodiscard]] std::string to_json(const MemoryMapReply& reply);
[[nodiscard]] std::string to_json(const DirtyHarvestReply& reply);

}  // namespace guestmem::vmm
