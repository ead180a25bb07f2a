// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/backend_plans.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "guestmem/cli/report.hpp"
#include "guestmem/mem/backends/option_text.hpp"

namespace guestmem::cli {

std::optional<std::vector<BackendOptions>> read_backends(const std::vector<std::string>& texts) {
    std::vector<BackendOptions> all;
    for (const std::string& text : texts) {
        auto parsed = parse_backend(text);
        if (parsed)
            all.push_back(*std::move(parsed));
        else
            fmt::print(stderr, "guestmem: {}\n", parsed.error().message());
    }
    if (all.size() != texts.size()) return std::nullopt;
    return all;
}

bool PlannedBackends::is_refused() const {
    return together.has_refusal() ||
           std::ranges::any_of(plans, [](const BackendPlan& plan) { return plan.problems.has_refusal(); });
}

Result<PlannedBackends> plan_backends(const std::vector<BackendOptions>& all, bool is_locked) {
    const MachineFacts machine = GM_TRY(ask_machine());
    PlannedBackends planned;
    for (const BackendOptions& options : all) {
        const auto file = ask_file(options);
        if (file) {
            planned.plans.push_back(plan_backend(options, machine, *file));
        } else {
            // The others are planned all the same.
            planned.plans.push_back({.options = options});
            planned.plans.back().problems.refuse("path-unknown", file.error().message());
        }
    }
    planned.together = check_together(planned.plans, machine);
    if (is_locked) planned.together.append(check_locked(planned.plans, machine));
    return planned;
}

std::string problems_text(const Problems& problems) {
    std::string text;
    for (const Problem& problem : problems.all()) {
        text +=
            fmt::format("  {:<8} {} [{}]\n", problem.severity == Severity::refusal ? "refused" : "warning",
                        to_printable(problem.message), problem.code);
        if (!problem.advice.empty()) text += fmt::format("           {}\n", to_printable(problem.advice));
    }
    return text;
}

}  // namespace guestmem::cli
