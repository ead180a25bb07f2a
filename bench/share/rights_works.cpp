// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "bench/share/served.hpp"
#include "bench/share/works.hpp"
#include "guestmem/share/policy.hpp"

namespace guestmem::bench {
namespace {

constexpr double decision_target_us = 50;
constexpr int passes = 5;

/// Literals, beginnings, ends, middles and sets, in equal parts.
std::string pattern_of(std::size_t number) {
    switch (number % 5) {
        case 0: return fmt::format("share-{}", number);
        case 1: return fmt::format("p{}-*", number);
        case 2: return fmt::format("*-s{}", number);
        case 3: return fmt::format("*-m{}-*", number);
        default: return fmt::format("x[0-9]?{}*", number);
    }
}

share::ServiceConfig config_of(std::uint32_t count_rules) {
    share::ServiceConfig config;
    share::VmConfig& vm = config.vms.emplace_back();
    vm.name = "vm";
    for (std::uint32_t i = 0; i < count_rules; ++i)
        vm.rules.push_back({.verdict = i % 2 == 0 ? share::Verdict::allow : share::Verdict::deny,
                            .pattern = pattern_of(i),
                            .permissions = {},
                            .line = i + 1});
    return config;
}

/// Decided early, late, and by nobody.
std::vector<std::string> names_of(std::size_t count_rules) {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < 16; ++i) {
        names.push_back(fmt::format("share-{}", i * 5));
        names.push_back(fmt::format("name-m{}-end", (count_rules - 1 - i) / 5 * 5 + 3));
        names.push_back(fmt::format("nobody-has-this-name-{}", i));
    }
    return names;
}

double best_us(const share::Policy& policy, const std::string& name) {
    double best = std::numeric_limits<double>::max();
    for (int pass = 0; pass < passes; ++pass) {
        std::string why;
        const auto start = Clock::now();
        const auto granted = policy.check({"vm", false}, name, share::Wanted::attach, why);
        const double took = seconds_since(start) * 1e6;
        if (why.empty()) give_up("a decision has no reason");
        best = std::min(best, took);
    }
    return best;
}

}  // namespace

void measure_rights(const Scale& scale, Table& table) {
    const share::Policy policy{config_of(scale.rules)};
    std::vector<double> times;
    for (const std::string& name : names_of(scale.rules)) times.push_back(best_us(policy, name));
    table.push_back(
        {fmt::format("may it attach? {} rules", scale.rules), "us", median(times), 0, decision_target_us});
    table.push_back({"  the slowest of the names", "us", std::ranges::max(times), 0, decision_target_us});
}

}  // namespace guestmem::bench
