// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/calls.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace guestmem::share {
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

Result<std::string> text_of(const json& object, const char* field) {
    const auto found = object.find(field);
    if (found == object.end() || !found->is_string()) return wrong(field, "a text");
    return found->get<std::string>();
}

template <typename Number>
Result<Number> number_of(const json& object, const char* field) {
    const auto found = object.find(field);
    if (found == object.end() || !found->is_number_integer()) return wrong(field, "a number");
    if (found->is_number_unsigned()) {
        const auto value = found->get<std::uint64_t>();
        if (!std::in_range<Number>(value)) return wrong(field, "in range");
        return static_cast<Number>(value);
    }
    const auto value = found->get<std::int64_t>();
    if (!std::in_range<Number>(value)) return wrong(field, "in range");
    return static_cast<Number>(value);
}

Result<bool> flag_of(const json& object, const char* field) {
    const auto found = object.find(field);
    if (found == object.end() || !found->is_boolean()) return wrong(field, "true or false");
    return found->get<bool>();
}

/// A flag that may be left out.
Result<bool> flag_or(const json& object, const char* field, bool otherwise) {
    if (!object.contains(field)) return otherwise;
    return flag_of(object, field);
}

template <typename Number>
Result<std::optional<Number>> number_if(const json& object, const char* field) {
    if (!object.contains(field)) return std::optional<Number>{};
    return std::optional<Number>{GM_TRY(number_of<Number>(object, field))};
}

Result<std::string> text_or(const json& object, const char* field, std::string otherwise) {
    if (!object.contains(field)) return otherwise;
    return text_of(object, field);
}

/// Not a copy: what stands in the list may nest as deep as the text is long.
Result<const json*> list_of(const json& object, const char* field) {
    const auto found = object.find(field);
    if (found == object.end() || !found->is_array()) return wrong(field, "a list");
    return &*found;
}

template <typename Number>
Result<std::vector<Number>> numbers_of(const json& object, const char* field) {
    const json* const list = GM_TRY(list_of(object, field));
    std::vector<Number> numbers;
    for (const json& entry : *list) {
        if (!entry.is_number_unsigned() || !std::in_range<Number>(entry.get<std::uint64_t>()))
            return wrong(field, "a list of numbers");
        numbers.push_back(static_cast<Number>(entry.get<std::uint64_t>()));
    }
    return numbers;
}

json to_object(const ShareSummary& summary) {
    return {
        {"name", summary.name},         {"size", summary.size_bytes},       {"extent", summary.extent_bytes},
        {"vectors", summary.vectors},   {"slots", summary.slots},           {"ids", summary.ids},
        {"peers", summary.count_peers}, {"holders", summary.count_holders}, {"origin", summary.origin},
        {"maker", summary.maker},       {"backing", summary.backing},       {"stage", summary.stage},
        {"keep", summary.is_kept}};
}

/// `peers` is a number in a list of shares and a list in the status of one.
Result<ShareSummary> to_summary(const json& object) {
    ShareSummary summary;
    summary.name = GM_TRY(text_of(object, "name"));
    summary.size_bytes = GM_TRY(number_of<std::uint64_t>(object, "size"));
    summary.extent_bytes = GM_TRY(number_of<std::uint64_t>(object, "extent"));
    summary.vectors = GM_TRY(number_of<std::uint32_t>(object, "vectors"));
    summary.slots = GM_TRY(number_of<std::uint32_t>(object, "slots"));
    summary.ids = GM_TRY(text_of(object, "ids"));
    summary.count_holders = GM_TRY(number_if<std::uint32_t>(object, "holders")).value_or(0);
    summary.origin = GM_TRY(text_or(object, "origin", "file"));
    summary.maker = GM_TRY(text_or(object, "maker", {}));
    summary.backing = GM_TRY(text_or(object, "backing", "memfd"));
    summary.stage = GM_TRY(text_or(object, "stage", "ready"));
    summary.is_kept = GM_TRY(flag_or(object, "keep", false));
    if (object.contains("peers") && object["peers"].is_array()) {
        summary.count_peers = static_cast<std::uint32_t>(object["peers"].size());
    } else {
        summary.count_peers = GM_TRY(number_of<std::uint32_t>(object, "peers"));
    }
    return summary;
}

Result<PeerStatus> to_peer(const json& object) {
    PeerStatus peer;
    peer.slot = GM_TRY(number_of<std::uint32_t>(object, "slot"));
    peer.vm = GM_TRY(text_of(object, "vm"));
    peer.pid = GM_TRY(number_of<std::int32_t>(object, "pid"));
    peer.uid = GM_TRY(number_of<std::uint32_t>(object, "uid"));
    peer.gid = GM_TRY(number_of<std::uint32_t>(object, "gid"));
    peer.is_joined = GM_TRY(text_of(object, "state")) == "joined";
    peer.is_tool = GM_TRY(flag_of(object, "tool"));
    peer.may_notify = GM_TRY(flag_or(object, "may_notify", true));
    peer.is_read_only = GM_TRY(flag_or(object, "read_only", false));
    peer.is_revoked = GM_TRY(flag_or(object, "revoked", false));
    peer.can_bypass_read_only = GM_TRY(flag_or(object, "read_only_does_not_hold", false));
    return peer;
}

}  // namespace

Result<NamedCall> parse_named_call(std::string_view arguments) {
    const json object = GM_TRY(parse_object(arguments));
    NamedCall call;
    call.share = GM_TRY(text_of(object, "share"));
    call.has_presence = GM_TRY(flag_or(object, "presence", false));
    return call;
}

Result<AttachCall> parse_attach_call(std::string_view arguments) {
    const json object = GM_TRY(parse_object(arguments));
    AttachCall call;
    call.share = GM_TRY(text_of(object, "share"));
    call.is_session = GM_TRY(flag_or(object, "session", false));
    call.may_create = GM_TRY(flag_or(object, "create", false));
    call.is_read_only = GM_TRY(flag_or(object, "read_only", false));
    call.size_bytes = GM_TRY(number_if<std::uint64_t>(object, "size"));
    call.vectors = GM_TRY(number_if<std::uint32_t>(object, "vectors"));
    call.slots = GM_TRY(number_if<std::uint32_t>(object, "slots"));
    call.slot = GM_TRY(number_if<std::uint32_t>(object, "slot"));
    call.hears_senders = GM_TRY(flag_or(object, "hears_senders", false));
    call.counts_rings = GM_TRY(flag_or(object, "counts_rings", true));
    call.takes_batches = GM_TRY(flag_or(object, "takes_batches", false));
    return call;
}

Result<HoldCall> parse_hold_call(std::string_view arguments) {
    const json object = GM_TRY(parse_object(arguments));
    HoldCall call;
    call.share = GM_TRY(text_of(object, "share"));
    call.may_create = GM_TRY(flag_or(object, "create", false));
    call.size_bytes = GM_TRY(number_if<std::uint64_t>(object, "size"));
    call.vectors = GM_TRY(number_if<std::uint32_t>(object, "vectors"));
    call.slots = GM_TRY(number_if<std::uint32_t>(object, "slots"));
    return call;
}

Result<HoldReply> parse_hold_reply(std::string_view result) {
    const json object = GM_TRY(parse_object(result));
    HoldReply reply;
    reply.size_bytes = GM_TRY(number_of<std::uint64_t>(object, "size"));
    reply.extent_bytes = GM_TRY(number_of<std::uint64_t>(object, "extent"));
    reply.slots = GM_TRY(number_of<std::uint32_t>(object, "slots"));
    reply.is_created = GM_TRY(flag_of(object, "created"));
    return reply;
}

Result<RingCall> parse_ring_call(std::string_view arguments) {
    const json object = GM_TRY(parse_object(arguments));
    RingCall call;
    call.share = GM_TRY(text_of(object, "share"));
    call.vector = GM_TRY(number_of<std::uint32_t>(object, "vector"));
    const auto peer = object.find("peer");
    if (peer != object.end() && peer->is_string() && peer->get_ref<const std::string&>() == "all")
        return call;
    if (peer == object.end() || !peer->is_number()) return wrong("peer", "a number or \"all\"");
    call.peer = GM_TRY(number_of<std::uint32_t>(object, "peer"));
    return call;
}

Result<ServiceSummary> parse_service_summary(std::string_view result) {
    const json object = GM_TRY(parse_object(result));
    ServiceSummary summary;
    const auto service = object.find("service");
    if (service == object.end() || !service->is_object()) return wrong("service", "an object");
    summary.pid = GM_TRY(number_of<std::int32_t>(*service, "pid"));
    if (service->contains("generation"))
        summary.generation = GM_TRY(number_of<std::uint32_t>(*service, "generation"));
    summary.keeper = GM_TRY(text_or(*service, "keeper", {}));
    for (const json& entry : *GM_TRY(list_of(object, "shares"))) {
        if (!entry.is_object()) return wrong("shares", "a list of objects");
        summary.shares.push_back(GM_TRY(to_summary(entry)));
    }
    return summary;
}

Result<ShareStatus> parse_share_status(std::string_view result) {
    const json object = GM_TRY(parse_object(result));
    ShareStatus status;
    status.summary = GM_TRY(to_summary(object));
    for (const json& entry : *GM_TRY(list_of(object, "seals"))) {
        if (!entry.is_string()) return wrong("seals", "a list of texts");
        status.seals.push_back(entry.get<std::string>());
    }
    for (const json& entry : *GM_TRY(list_of(object, "sockets"))) {
        if (!entry.is_object()) return wrong("sockets", "a list of objects");
        auto& door = status.doors.emplace_back();
        door.path = GM_TRY(text_of(entry, "path"));
        door.vm = GM_TRY(text_of(entry, "vm"));
        door.slots = GM_TRY(numbers_of<std::uint32_t>(entry, "slots"));
    }
    for (const json& entry : *GM_TRY(list_of(object, "peers"))) {
        if (!entry.is_object()) return wrong("peers", "a list of objects");
        status.peers.push_back(GM_TRY(to_peer(entry)));
    }
    for (const json& entry : *GM_TRY(list_of(object, "pending"))) {
        if (!entry.is_object()) return wrong("pending", "a list of objects");
        status.pending.push_back({.slot = GM_TRY(number_of<std::uint32_t>(entry, "slot")),
                                  .per_vector = GM_TRY(numbers_of<std::uint64_t>(entry, "kicks"))});
    }
    return status;
}

Result<MemoryReply> parse_memory_reply(std::string_view result) {
    const json object = GM_TRY(parse_object(result));
    MemoryReply reply;
    reply.size_bytes = GM_TRY(number_of<std::uint64_t>(object, "size"));
    reply.extent_bytes = GM_TRY(number_of<std::uint64_t>(object, "extent"));
    return reply;
}

Result<AttachReply> parse_attach_reply(std::string_view result) {
    const json object = GM_TRY(parse_object(result));
    return AttachReply{GM_TRY(number_of<std::uint32_t>(object, "slot"))};
}

Result<SessionReply> parse_session_reply(std::string_view result) {
    const json object = GM_TRY(parse_object(result));
    SessionReply reply;
    reply.slot = GM_TRY(number_of<std::uint32_t>(object, "slot"));
    reply.size_bytes = GM_TRY(number_of<std::uint64_t>(object, "size"));
    reply.extent_bytes = GM_TRY(number_of<std::uint64_t>(object, "extent"));
    reply.vectors = GM_TRY(number_of<std::uint32_t>(object, "vectors"));
    reply.slots = GM_TRY(number_of<std::uint32_t>(object, "slots"));
    reply.senders = GM_TRY(number_of<std::uint32_t>(object, "senders"));
    reply.is_created = GM_TRY(flag_of(object, "created"));
    reply.may_notify = GM_TRY(flag_of(object, "may_notify"));
    reply.is_read_only = GM_TRY(flag_of(object, "read_only"));
    return reply;
}

Result<ReloadReply> parse_reload_reply(std::string_view result) {
    const json object = GM_TRY(parse_object(result));
    ReloadReply reply;
    for (const json& entry : *GM_TRY(list_of(object, "changes"))) {
        if (!entry.is_string()) return wrong("changes", "a list of texts");
        reply.changes.push_back(entry.get<std::string>());
    }
    return reply;
}

Result<RingReply> parse_ring_reply(std::string_view result) {
    const json object = GM_TRY(parse_object(result));
    RingReply reply;
    reply.rung = GM_TRY(numbers_of<std::uint32_t>(object, "rung"));
    reply.absent = GM_TRY(numbers_of<std::uint32_t>(object, "absent"));
    return reply;
}

std::string to_json(const NamedCall& call) {
    json object{{"share", call.share}};
    if (call.has_presence) object["presence"] = true;
    return to_text(object);
}

std::string to_json(const AttachCall& call) {
    json object{{"share", call.share}};
    if (!call.is_session) return to_text(object);
    object["session"] = true;
    if (call.may_create) object["create"] = true;
    if (call.is_read_only) object["read_only"] = true;
    if (call.size_bytes) object["size"] = *call.size_bytes;
    if (call.vectors) object["vectors"] = *call.vectors;
    if (call.slots) object["slots"] = *call.slots;
    if (call.slot) object["slot"] = *call.slot;
    if (call.hears_senders) object["hears_senders"] = true;
    if (!call.counts_rings) object["counts_rings"] = false;
    if (call.takes_batches) object["takes_batches"] = true;
    return to_text(object);
}

std::string to_json(const HoldCall& call) {
    json object{{"share", call.share}};
    if (call.may_create) object["create"] = true;
    if (call.size_bytes) object["size"] = *call.size_bytes;
    if (call.vectors) object["vectors"] = *call.vectors;
    if (call.slots) object["slots"] = *call.slots;
    return to_text(object);
}

std::string to_json(const HoldReply& reply) {
    return to_text({{"size", reply.size_bytes},
                    {"extent", reply.extent_bytes},
                    {"slots", reply.slots},
                    {"created", reply.is_created}});
}

std::string to_json(const RingCall& call) {
    json object{{"share", call.share}, {"vector", call.vector}};
    if (call.peer) {
        object["peer"] = *call.peer;
    } else {
        object["peer"] = "all";
    }
    return to_text(object);
}

std::string to_json(const ServiceSummary& summary) {
    json shares = json::array();
    for (const ShareSummary& share : summary.shares) shares.push_back(to_object(share));
    return to_text(
        {{"service", {{"pid", summary.pid}, {"generation", summary.generation}, {"keeper", summary.keeper}}},
         {"shares", std::move(shares)}});
}

std::string to_json(const ShareStatus& status) {
    json object = to_object(status.summary);
    object["seals"] = status.seals;
    object["sockets"] = json::array();
    for (const DoorStatus& door : status.doors)
        object["sockets"].push_back({{"path", door.path}, {"vm", door.vm}, {"slots", door.slots}});
    object["peers"] = json::array();
    for (const PeerStatus& peer : status.peers)
        object["peers"].push_back({{"slot", peer.slot},
                                   {"vm", peer.vm},
                                   {"pid", peer.pid},
                                   {"uid", peer.uid},
                                   {"gid", peer.gid},
                                   {"state", peer.is_joined ? "joined" : "joining"},
                                   {"tool", peer.is_tool},
                                   {"may_notify", peer.may_notify},
                                   {"read_only", peer.is_read_only},
                                   {"revoked", peer.is_revoked},
                                   {"read_only_does_not_hold", peer.can_bypass_read_only}});
    object["pending"] = json::array();
    for (const PendingKicks& slot : status.pending)
        object["pending"].push_back({{"slot", slot.slot}, {"kicks", slot.per_vector}});
    return to_text(object);
}

std::string to_json(const MemoryReply& reply) {
    return to_text({{"size", reply.size_bytes}, {"extent", reply.extent_bytes}});
}

std::string to_json(const AttachReply& reply) { return to_text({{"slot", reply.slot}}); }

std::string to_json(const SessionReply& reply) {
    return to_text({{"slot", reply.slot},
                    {"size", reply.size_bytes},
                    {"extent", reply.extent_bytes},
                    {"vectors", reply.vectors},
                    {"slots", reply.slots},
                    {"senders", reply.senders},
                    {"created", reply.is_created},
                    {"may_notify", reply.may_notify},
                    {"read_only", reply.is_read_only}});
}

std::string to_json(const ReloadReply& reply) { return to_text({{"changes", reply.changes}}); }

std::string to_json(const RingReply& reply) {
    return to_text({{"rung", reply.rung}, {"absent", reply.absent}});
}

}  // namespace guestmem::share
