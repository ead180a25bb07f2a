// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/report/plan_text.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "guestmem/base/sizes.hpp"
#include "guestmem/dma/report/words.hpp"

namespace guestmem::dma {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t most_devices_named = 8;

std::string duration_text(double seconds) {
    if (seconds < 0.001) return "under 1 ms";
    return seconds < 1 ? fmt::format("{:.0f} ms", seconds * 1000) : fmt::format("{:.1f} s", seconds);
}

std::string counted(std::uint64_t count, std::string_view one, std::string_view many) {
    return fmt::format("{} {}", count, count == 1 ? one : many);
}

std::string devices_text(const std::vector<std::string>& devices) {
    std::string text;
    for (std::size_t i = 0; i < std::min(devices.size(), most_devices_named); ++i)
        text += (i == 0 ? "" : ", ") + clean(devices[i]);
    return devices.size() > most_devices_named
               ? fmt::format("{} and {} more", text, devices.size() - most_devices_named)
               : text;
}

std::string mapping_line(const PlannedMapping& mapping) {
    const std::string asked = to_string(mapping.asked);
    const std::string kept = to_string(mapping.kept);
    return fmt::format("  {:#014x} to {:#014x}  {:>8}  {:<2}{}  pages of {}\n", mapping.iova,
                       mapping.iova + (mapping.size_bytes - 1), format_size(mapping.size_bytes), asked,
                       asked == kept ? "" : fmt::format(", kept as {}", kept),
                       format_size(mapping.page_bytes));
}

std::string domain_text(const PlannedDomain& domain, std::size_t most_mappings) {
    std::string text = fmt::format("{}: {}\n", devices_text(domain.devices),
                                   domain.unit.empty() ? "no unit" : "behind " + clean(domain.unit));
    for (std::size_t i = 0; i < std::min(domain.mappings.size(), most_mappings); ++i)
        text += mapping_line(domain.mappings[i]);
    if (domain.mappings.size() > most_mappings)
        text += fmt::format("  and {} mappings more\n", domain.mappings.size() - most_mappings);
    text += fmt::format(
        "  {}, {} in the unit's tables, {} locked, {} when the memory is there ({} when it is not)\n",
        counted(domain.mappings.size(), "mapping", "mappings"),
        counted(domain.page_entries, "entry", "entries"), format_size(domain.locked_bytes),
        duration_text(domain.seconds_populated), duration_text(domain.seconds_unpopulated));
    return text;
}

std::string problem_text(const Problem& problem, const std::string& file) {
    std::string text = fmt::format("{}:{}: {}: {}\n", clean(file), problem.line,
                                   problem.is_fatal ? "error" : "note", clean(problem.text));
    for (const std::string& command : problem.commands) text += "  $ " + clean(command) + "\n";
    return text;
}

std::string address_text(std::uint64_t address) { return fmt::format("{:#x}", address); }

Json domain_json(const Plan& plan, const PlannedDomain& domain) {
    Json object{{"vm", plan.vms[domain.vm].name},
                {"devices", domain.devices},
                {"unit", domain.unit},
                {"mapped_bytes", domain.mapped_bytes},
                {"locked_bytes", domain.locked_bytes},
                {"page_entries", domain.page_entries},
                {"seconds_populated", domain.seconds_populated},
                {"seconds_unpopulated", domain.seconds_unpopulated},
                {"mappings", Json::array()}};
    for (const PlannedMapping& mapping : domain.mappings)
        object["mappings"].push_back({{"iova", address_text(mapping.iova)},
                                      {"size_bytes", mapping.size_bytes},
                                      {"asked", to_string(mapping.asked)},
                                      {"kept", to_string(mapping.kept)},
                                      {"page_bytes", mapping.page_bytes}});
    return object;
}

Json problem_json(const Problem& problem, const std::string& file) {
    return {{"kind", to_string(problem.kind)},
            {"is_fatal", problem.is_fatal},
            {"vm", problem.vm},
            {"device", problem.device},
            {"file", file},
            {"line", problem.line},
            {"text", problem.text},
            {"commands", problem.commands}};
}

}  // namespace

std::string to_text(const Plan& plan, const std::string& grants_file, std::size_t most_mappings) {
    std::string text;
    for (std::size_t vm = 0; vm < plan.vms.size(); ++vm) {
        if (std::ranges::none_of(plan.domains, [&](const PlannedDomain& domain) { return domain.vm == vm; }))
            continue;
        const PlannedVm& planned = plan.vms[vm];
        text += fmt::format(
            "VM {}: {} locked, limit {}\n", clean(planned.name), format_size(planned.locked_bytes),
            planned.memory_lock_bytes ? format_size(*planned.memory_lock_bytes) : "not known or none");
        for (const PlannedDomain& domain : plan.domains)
            if (domain.vm == vm) text += domain_text(domain, most_mappings);
    }
    for (const Problem& problem : plan.problems) text += problem_text(problem, grants_file);
    const auto count = std::ranges::count_if(plan.problems, &Problem::is_fatal);
    text += count == 0 ? "it would work\n"
                       : fmt::format("it would not work: {} {}\n", count, count == 1 ? "reason" : "reasons");
    return text;
}

std::string to_json(const Plan& plan, const std::string& grants_file) {
    Json all{{"would_work", plan.would_work()},
             {"vms", Json::array()},
             {"domains", Json::array()},
             {"problems", Json::array()}};
    for (const PlannedVm& vm : plan.vms) {
        Json object{{"name", vm.name}, {"locked_bytes", vm.locked_bytes}};
        if (vm.memory_lock_bytes) object["memory_lock_bytes"] = *vm.memory_lock_bytes;
        all["vms"].push_back(std::move(object));
    }
    for (const PlannedDomain& domain : plan.domains) all["domains"].push_back(domain_json(plan, domain));
    for (const Problem& problem : plan.problems)
        all["problems"].push_back(problem_json(problem, grants_file));
    return all.dump(2, ' ', true, Json::error_handler_t::replace) + "\n";
}

}  // namespace guestmem::dma
