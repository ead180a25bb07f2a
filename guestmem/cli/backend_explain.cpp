// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "guestmem/cli/backend_commands.hpp"
#include "guestmem/cli/backend_plans.hpp"
#include "guestmem/cli/exit_codes.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/mem/backends/discard.hpp"
#include "guestmem/mem/backends/option_text.hpp"
#include "guestmem/mem/backends/plan.hpp"
#include "guestmem/mem/backends/size_text.hpp"

namespace guestmem::cli {
namespace {

struct ExplainOptions {
    std::vector<std::string> texts;
    bool json = false;
    bool is_locked = false;
};

std::string_view word_of(Severity severity) { return severity == Severity::refusal ? "refused" : "warning"; }

/// What a balloon and its like do, and for which of them it does not suit.
std::string discards_of(const BackendPlan& plan) {
    std::string text = fmt::format("  {:<8} {}\n", "discard", row_of(backing_of(plan)).sentence);
    for (const DiscardUse use : discard_uses) {
        const Problems problems = check_discard(plan, use);
        for (const Problem& problem : problems.all())
            if (problem.code != "discard-refused")
                text += fmt::format("           {}: {}: {}\n", to_word(use), word_of(problem.severity),
                                    to_printable(problem.message));
    }
    return text;
}

std::string text_of(const BackendPlan& plan) {
    std::string text = fmt::format("{}: {}\n", plan.options.id, to_printable(to_text(plan.options)));
    // What is refused does none of this.
    if (!plan.problems.has_refusal()) {
        text += fmt::format("  {:<8} {}\n", "opened", to_printable(opening_of(plan)));
        text += fmt::format("  {:<8} {}\n", "mapped", mapping_of(plan));
        text +=
            fmt::format("  {:<8} {} now, {} at worst\n", "memory", format_qemu_size(plan.memory_now_bytes),
                        format_qemu_size(plan.memory_worst_bytes));
        text += fmt::format("  {:<8} {}\n", "at exit", ending_of(plan));
        text += discards_of(plan);
    }
    return text + problems_text(plan.problems);
}

nlohmann::json json_of(const Problems& problems) {
    nlohmann::json list = nlohmann::json::array();
    for (const Problem& problem : problems.all())
        list.push_back({{"severity", problem.severity == Severity::refusal ? "refusal" : "warning"},
                        {"code", problem.code},
                        {"message", problem.message},
                        {"advice", problem.advice}});
    return list;
}

nlohmann::json discard_json(const BackendPlan& plan) {
    static constexpr const char* means[] = {"refused", "dropped", "punched", "dropped-and-punched"};
    const DiscardRule& rule = row_of(backing_of(plan));
    nlohmann::json uses = nlohmann::json::object();
    for (const DiscardUse use : discard_uses) {
        const Problems problems = check_discard(plan, use);
        uses[std::string{to_word(use)}] = {{"is_refused", problems.has_refusal()},
                                           {"problems", json_of(problems)}};
    }
    return {{"backing", rule.name},
            {"means", means[static_cast<std::size_t>(rule.means)]},
            {"reads_zeros", rule.reads_zeros},
            {"reaches_others", rule.reaches_others},
            {"granule_bytes", plan.page_bytes},
            {"uses", std::move(uses)}};
}

nlohmann::json json_of(const BackendPlan& plan) {
    static constexpr const char* effects[] = {"none", "created", "grown", "temporary"};
    const bool is_rom = plan.mode.kind == RegionKind::rom;
    return {{"id", plan.options.id},
            {"type", row_of(plan.options.kind).name},
            {"options", to_text(plan.options)},
            {"size_bytes", plan.options.size_bytes},
            {"mapped_bytes", plan.mapped_bytes},
            {"page_bytes", plan.page_bytes},
            {"share", plan.mode.sharing == MapSharing::shared},
            {"writable", plan.mode.access == MapAccess::read_write},
            {"guest", is_rom ? "rom" : "ram"},
            {"file_effect", effects[static_cast<std::size_t>(plan.effect)]},
            {"opened", opening_of(plan)},
            {"mapped", mapping_of(plan)},
            {"at_exit", ending_of(plan)},
            {"discard", discard_json(plan)},
            {"host_nodes", plan.options.host_nodes},
            {"memory_now_bytes", plan.memory_now_bytes},
            {"memory_worst_bytes", plan.memory_worst_bytes},
            {"is_refused", plan.problems.has_refusal()},
            {"problems", json_of(plan.problems)}};
}

void print_json(const PlannedBackends& explained) {
    nlohmann::json backends = nlohmann::json::array();
    for (const BackendPlan& plan : explained.plans) backends.push_back(json_of(plan));
    const nlohmann::json all{{"backends", std::move(backends)},
                             {"together", json_of(explained.together)},
                             {"is_refused", explained.is_refused()}};
    // A path may have bytes that are no UTF-8.
    print(all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

int explain(const ExplainOptions& options) {
    const auto all = read_backends(options.texts);
    if (!all) return exit_usage;
    const auto explained = plan_backends(*all, options.is_locked);
    if (!explained) return report(explained.error());
    if (options.json) {
        print_json(*explained);
    } else {
        for (const BackendPlan& plan : explained->plans) print(text_of(plan));
        const std::string together = problems_text(explained->together);
        if (!together.empty()) print("together:\n" + together);
    }
    return explained->is_refused() ? exit_failed : exit_ok;
}

}  // namespace

Action describe_backend_explain(CLI::App& app) {
    auto options = std::make_shared<ExplainOptions>();
    app.footer(
        "Examples:\n"
        "  guestmem backend explain memory-backend-memfd,id=ram0,size=2G\n"
        "  guestmem backend explain 'memory-backend-file,id=vm1,size=2G,mem-path=/vm/a.ram,readonly=on,rom=off'\n"
        "Nothing is made or changed. Several backends are also checked against each other.\n"
        "Exit codes: 0 they can be made (there may be warnings), 1 something is refused, 2 wrong words.");
    app.add_option("BACKEND", options->texts,
                   "A backend in QEMU's words: memory-backend-TYPE,id=NAME,size=SIZE,...")
        ->required();
    app.add_flag("--locked", options->is_locked,
                 "All of it will be locked, as for a device that is passed through (VFIO)");
    app.add_flag("--json", options->json, "Print JSON for programs");
    return [options] { return explain(*options); };
}

}  // namespace guestmem::cli
