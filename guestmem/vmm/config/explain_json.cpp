// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <nlohmann/json.hpp>
#include <string_view>
#include <variant>

#include "guestmem/vmm/config/explain.hpp"
#include "guestmem/vmm/config/schema.hpp"

namespace guestmem::vmm {
namespace {

using Json = nlohmann::ordered_json;

class JsonWriter {
public:
    explicit JsonWriter(const Sources& sources) : sources_(sources) {}

    [[nodiscard]] Json config(const VmConfig& config) const {
        Json json{{"system", config.system.value}, {"dryrun", config.dryrun.has_value()}};
        if (config.safety) json["safety"] = config.safety->value == Safety::warn ? "warn" : "none";
        json["settings"] = list(config.settings, [&](const Setting& setting) { return to_json(setting); });
        json["memory"] = list(config.memory, [&](const MemoryLine& line) { return to_json(line); });
        json["cpus"] = list(config.cpus, [&](const Cpu& cpu) { return to_json(cpu); });
        json["loads"] = list(config.loads, [&](const Load& load) { return to_json(load); });
        if (config.cmdline) json["cmdline"] = config.cmdline->value;
        json["vdevs"] = list(config.vdevs, [&](const Vdev& vdev) { return to_json(vdev); });
        return json;
    }

private:
    template <typename Items, typename Write>
    static Json list(const Items& items, const Write& write) {
        Json json = Json::array();
        for (const auto& item : items) json.push_back(write(item));
        return json;
    }

    void place(Json& json, const Place& place) const {
        if (place.is_somewhere()) json["place"] = sources_.describe(place);
    }

    [[nodiscard]] Json to_json(const Setting& setting) const {
        Json json{{"variable", row_of(setting.variable).text}};
        std::visit([&](const auto& value) { json["value"] = value; }, setting.value.value);
        json["has_effect"] = row_of(setting.variable).support == Support::works;
        place(json, setting.value.place);
        return json;
    }

    [[nodiscard]] Json to_json(const MemoryLine& line) const {
        static constexpr std::array<std::string_view, 3> kinds{"ram", "rom", "reserve"};
        Json json{{"kind", kinds[static_cast<std::size_t>(line.kind)]},
                  {"size_bytes", line.size_bytes.value}};
        json["ranges"] = list(line.ranges, [](const GuestRange& range) {
            return Json{{"base", range.base().value()}, {"last", range.last().value()}};
        });
        if (line.backend) json["backend"] = line.backend->value;
        place(json, line.place);
        return json;
    }

    static Json to_json(const Sched& sched) {
        static constexpr std::array<std::string_view, 3> policies{"round-robin", "fifo", "other"};
        Json json{{"priority", sched.priority}};
        if (sched.policy) json["policy"] = policies[static_cast<std::size_t>(*sched.policy)];
        return json;
    }

    [[nodiscard]] Json to_json(const Cpu& cpu) const {
        Json json = Json::object();
        if (cpu.partition) json["partition"] = cpu.partition->value;
        if (!cpu.runmask.empty())
            json["runmask"] =
                list(cpu.runmask, [](const Placed<std::uint32_t>& host) { return Json(host.value); });
        if (cpu.sched) json["sched"] = to_json(cpu.sched->value);
        place(json, cpu.place);
        return json;
    }

    [[nodiscard]] Json to_json(const Load& load) const {
        const std::string_view kind = load.kind == LoadKind::kernel ? "kernel" : row_of(load.kind).text;
        Json json{{"kind", kind}, {"file", load.file.value}};
        if (load.address) json["address"] = load.address->value.value();
        place(json, load.place);
        return json;
    }

    [[nodiscard]] Json to_json(const Vdev& vdev) const {
        Json json{{"type", row_of(vdev.kind).text}};
        if (vdev.name) json["name"] = vdev.name->value;
        if (vdev.loc) json[vdev.kind == VdevKind::ser8250 ? "port" : "loc"] = vdev.loc->value;
        if (vdev.intr) {
            json["intr"] = {{"controller", vdev.intr->value.controller}};
            if (vdev.intr->value.pin) json["intr"]["pin"] = *vdev.intr->value.pin;
        }
        if (vdev.sched) json["sched"] = to_json(vdev.sched->value);
        if (vdev.hostdev) json["hostdev"] = vdev.hostdev->value;
        if (vdev.kind == VdevKind::shmem) {
            json["form"] = vdev.loc ? "mmio" : "pci";
            json["create"] = list(vdev.shmem.creates, [](const CreateLine& create) {
                return Json{{"name", create.name.value}, {"size_bytes", create.size_bytes.value}};
            });
            json["rules"] = list(vdev.shmem.rules, [](const NameRule& rule) {
                return Json{{rule.is_allowed ? "allow" : "deny", rule.pattern.value}};
            });
        }
        if (vdev.kind == VdevKind::ivshmem) add(json, vdev.ivshmem);
        place(json, vdev.place);
        return json;
    }

    static void add(Json& json, const IvshmemOptions& options) {
        const bool is_plain = options.mode.value == IvshmemMode::plain;
        json["share"] = options.share.value;
        if (options.size_bytes) json["size_bytes"] = options.size_bytes->value;
        json["mode"] = is_plain ? "plain" : "doorbell";
        if (!is_plain) json["vectors"] = options.vectors.value;
    }

    const Sources& sources_;
};

}  // namespace

std::string explain_json(const VmConfig& config, const Sources& sources) {
    return JsonWriter{sources}.config(config).dump(2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace guestmem::vmm
