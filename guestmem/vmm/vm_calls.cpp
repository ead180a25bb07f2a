// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/vm_calls.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace guestmem::vmm {
namespace {

using nlohmann::json;

std::string to_text(const json& object) {
    return object.dump(-1, ' ', false, json::error_handler_t::replace);
}

Error wrong(std::string_view field, std::string_view what) {
    return Error{Errc::invalid_argument, fmt::format("field '{}' is not {}", field, what)};
}

Result<json> parse_object(std::string_view text) {
    json object = json::parse(text, nullptr, false);
    if (!object.is_object()) return Error{Errc::corrupt, "not a JSON object"};
    return object;
}

Result<std::string> read_text(const json& object, const char* field) {
    const auto found = object.find(field);
    if (found == object.end() || !found->is_string()) return wrong(field, "a text");
    return found->get<std::string>();
}

template <typename Number = std::uint64_t>
Result<Number> read_number(const json& object, const char* field) {
    const auto found = object.find(field);
    if (found == object.end() || !found->is_number_unsigned()) return wrong(field, "a number from 0 up");
    const auto value = found->get<std::uint64_t>();
    if (!std::in_range<Number>(value)) return wrong(field, "in range");
    return static_cast<Number>(value);
}

template <typename Number = std::uint64_t>
Result<std::optional<Number>> read_number_if(const json& object, const char* field) {
    if (!object.contains(field)) return std::optional<Number>{};
    return std::optional<Number>{GM_TRY(read_number<Number>(object, field))};
}

Result<bool> read_flag(const json& object, const char* field) {
    const auto found = object.find(field);
    if (found == object.end() || !found->is_boolean()) return wrong(field, "true or false");
    return found->get<bool>();
}

/// Calls `take` with each object of a list.
template <typename Take>
Result<void> read_list(const json& object, const char* field, Take&& take) {
    const auto found = object.find(field);
    if (found == object.end() || !found->is_array()) return wrong(field, "a list");
    for (const json& entry : *found) {
        if (!entry.is_object()) return wrong(field, "a list of objects");
        GM_TRY_CONTEXT(take(entry), field);
    }
    return {};
}

template <typename Values, typename Make>
json list_of(const Values& values, Make&& make) {
    json list = json::array();
    for (const auto& value : values) list.push_back(make(value));
    return list;
}

json json_of(const ExitCounts& counts) {
    json exits = json::object();
    for (std::size_t kind = 0; kind < counts.size(); ++kind)
        exits[std::string{exit_names[kind]}] = counts[kind];
    return {{"exits", std::move(exits)}};
}

Result<ExitCounts> read_exits(const json& processor) {
    const auto exits = processor.find("exits");
    if (exits == processor.end() || !exits->is_object()) return wrong("exits", "an object");
    ExitCounts counts{};
    for (std::size_t kind = 0; kind < counts.size(); ++kind)
        counts[kind] = GM_TRY(read_number(*exits, exit_names[kind].data()));
    return counts;
}

json json_of(const DeviceWindow& device) {
    return {{"name", device.name},
            {"bus", device.is_port ? "port" : "memory"},
            {"first", device.first},
            {"count", device.count}};
}

Result<DeviceWindow> read_device(const json& object) {
    DeviceWindow device;
    device.name = GM_TRY(read_text(object, "name"));
    device.is_port = GM_TRY(read_text(object, "bus")) == "port";
    device.first = GM_TRY(read_number(object, "first"));
    device.count = GM_TRY(read_number(object, "count"));
    return device;
}

json json_of(const ShareConnection& connection) {
    json object{{"device", connection.device}, {"share", connection.share}, {"size", connection.size_bytes}};
    if (connection.slot) object["slot"] = *connection.slot;
    return object;
}

Result<ShareConnection> read_connection(const json& object) {
    ShareConnection connection;
    connection.device = GM_TRY(read_text(object, "device"));
    connection.share = GM_TRY(read_text(object, "share"));
    connection.size_bytes = GM_TRY(read_number(object, "size"));
    connection.slot = GM_TRY(read_number_if<std::uint32_t>(object, "slot"));
    return connection;
}

json json_of(const PluggedShareReply& plugged) {
    return {{"share", plugged.share},
            {"address", plugged.address},
            {"size", plugged.size_bytes},
            {"slot", plugged.slot},
            {"read_only", plugged.is_read_only}};
}

Result<PluggedShareReply> read_plugged(const json& object) {
    PluggedShareReply plugged;
    plugged.share = GM_TRY(read_text(object, "share"));
    plugged.address = GM_TRY(read_number(object, "address"));
    plugged.size_bytes = GM_TRY(read_number(object, "size"));
    plugged.slot = GM_TRY(read_number<std::uint32_t>(object, "slot"));
    plugged.is_read_only = GM_TRY(read_flag(object, "read_only"));
    return plugged;
}

json json_of(const ListedRegion& region) {
    json object{{"name", region.name},       {"kind", region.kind},       {"backend", region.backend},
                {"address", region.address}, {"size", region.size_bytes}, {"logged", region.is_logged}};
    if (region.slot) object["slot"] = *region.slot;
    return object;
}

Result<ListedRegion> read_region(const json& object) {
    ListedRegion region;
    region.name = GM_TRY(read_text(object, "name"));
    region.kind = GM_TRY(read_text(object, "kind"));
    region.backend = GM_TRY(read_text(object, "backend"));
    region.address = GM_TRY(read_number(object, "address"));
    region.size_bytes = GM_TRY(read_number(object, "size"));
    region.slot = GM_TRY(read_number_if<std::uint32_t>(object, "slot"));
    region.is_logged = GM_TRY(read_flag(object, "logged"));
    return region;
}

/// For read_list(): adds what `read` makes of an object.
template <typename Value>
auto into(std::vector<Value>& values, Result<Value> (*read)(const json&)) {
    return [&values, read](const json& object) -> Result<void> {
        values.push_back(GM_TRY(read(object)));
        return {};
    };
}

}  // namespace

Result<MemoryMapCall> parse_memory_map_call(std::string_view arguments) {
    const json object = GM_TRY(parse_object(arguments));
    const auto from = GM_TRY(read_number_if(object, "from"));
    return MemoryMapCall{.from = from.value_or(0)};
}

Result<AttachShareCall> parse_attach_share_call(std::string_view arguments) {
    const json object = GM_TRY(parse_object(arguments));
    AttachShareCall call;
    call.share = GM_TRY(read_text(object, "share"));
    call.address = GM_TRY(read_number_if(object, "address"));
    return call;
}

Result<DetachShareCall> parse_detach_share_call(std::string_view arguments) {
    const json object = GM_TRY(parse_object(arguments));
    DetachShareCall call;
    call.share = GM_TRY(read_text(object, "share"));
    return call;
}

Result<DirtyLogCall> parse_dirty_log_call(std::string_view arguments) {
    const json object = GM_TRY(parse_object(arguments));
    DirtyLogCall call;
    call.is_on = GM_TRY(read_flag(object, "on"));
    return call;
}

Result<DirtyHarvestCall> parse_dirty_harvest_call(std::string_view arguments) {
    const json object = GM_TRY(parse_object(arguments));
    DirtyHarvestCall call;
    call.limit = GM_TRY(read_number_if(object, "limit"));
    call.confirm = GM_TRY(read_number_if(object, "confirm"));
    return call;
}

Result<StateReply> parse_state_reply(std::string_view result) {
    const json object = GM_TRY(parse_object(result));
    StateReply reply;
    reply.state = GM_TRY(read_text(object, "state"));
    reply.has_changed = GM_TRY(read_flag(object, "changed"));
    return reply;
}

Result<PluggedShareReply> parse_plugged_share_reply(std::string_view result) {
    return read_plugged(GM_TRY(parse_object(result)));
}

Result<VmStatus> parse_vm_status(std::string_view result) {
    const json object = GM_TRY(parse_object(result));
    VmStatus status;
    status.name = GM_TRY(read_text(object, "name"));
    status.pid = GM_TRY(read_number<std::int32_t>(object, "pid"));
    status.state = GM_TRY(read_text(object, "state"));
    status.memory_bytes = GM_TRY(read_number(object, "memory"));
    status.count_slots = GM_TRY(read_number(object, "slots"));
    status.has_dirty_log = GM_TRY(read_flag(object, "dirty_log"));
    status.share_control = GM_TRY(read_text(object, "share_control"));
    GM_TRY(read_list(object, "processors", into(status.processors, &read_exits)));
    GM_TRY(read_list(object, "devices", into(status.devices, &read_device)));
    GM_TRY(read_list(object, "connections", into(status.connections, &read_connection)));
    GM_TRY(read_list(object, "plugged", into(status.plugged, &read_plugged)));
    return status;
}

Result<MemoryMapReply> parse_memory_map_reply(std::string_view result) {
    const json object = GM_TRY(parse_object(result));
    MemoryMapReply reply;
    GM_TRY(read_list(object, "regions", into(reply.regions, &read_region)));
    reply.next = GM_TRY(read_number_if(object, "next"));
    return reply;
}

Result<DirtyHarvestReply> parse_dirty_harvest_reply(std::string_view result) {
    const json object = GM_TRY(parse_object(result));
    DirtyHarvestReply reply;
    const auto ranges = object.find("ranges");
    if (ranges == object.end() || !ranges->is_array()) return wrong("ranges", "a list");
    for (const json& range : *ranges) {
        const bool is_pair = range.is_array() && range.size() == 2 && range[0].is_number_unsigned() &&
                             range[1].is_number_unsigned();
        if (!is_pair) return wrong("ranges", "a list of pairs of numbers");
        reply.ranges.emplace_back(range[0].get<std::uint64_t>(), range[1].get<std::uint64_t>());
    }
    reply.ticket = GM_TRY(read_number(object, "ticket"));
    reply.has_more = GM_TRY(read_flag(object, "more"));
    return reply;
}

std::string to_json(const MemoryMapCall& call) { return to_text({{"from", call.from}}); }
std::string to_json(const AttachShareCall& call) {
    json object{{"share", call.share}};
    if (call.address) object["address"] = *call.address;
    return to_text(object);
}
std::string to_json(const DetachShareCall& call) { return to_text({{"share", call.share}}); }
std::string to_json(const DirtyLogCall& call) { return to_text({{"on", call.is_on}}); }
std::string to_json(const DirtyHarvestCall& call) {
    json object = json::object();
    if (call.limit) object["limit"] = *call.limit;
    if (call.confirm) object["confirm"] = *call.confirm;
    return to_text(object);
}
std::string to_json(const StateReply& reply) {
    return to_text({{"state", reply.state}, {"changed", reply.has_changed}});
}
std::string to_json(const PluggedShareReply& reply) { return to_text(json_of(reply)); }

std::string to_json(const VmStatus& status) {
    json object{{"name", status.name},
                {"pid", status.pid},
                {"state", status.state},
                {"memory", status.memory_bytes},
                {"slots", status.count_slots},
                {"dirty_log", status.has_dirty_log},
                {"share_control", status.share_control}};
    const auto make = [](const auto& value) { return json_of(value); };
    object["processors"] = list_of(status.processors, make);
    object["devices"] = list_of(status.devices, make);
    object["connections"] = list_of(status.connections, make);
    object["plugged"] = list_of(status.plugged, make);
    return to_text(object);
}

std::string to_json(const MemoryMapReply& reply) {
    json object{{"regions", list_of(reply.regions, [](const ListedRegion& one) { return json_of(one); })}};
    if (reply.next) object["next"] = *reply.next;
    return to_text(object);
}

std::string to_json(const DirtyHarvestReply& reply) {
    json ranges = json::array();
    for (const auto& [address, size_bytes] : reply.ranges)
        ranges.push_back(json::array({address, size_bytes}));
    return to_text({{"ranges", std::move(ranges)}, {"ticket", reply.ticket}, {"more", reply.has_more}});
}

}  // namespace guestmem::vmm
