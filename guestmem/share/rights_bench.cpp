// SPDX-License-Identifier: Apache-2.0
/// What one attach decision costs: Rights::decide over a list of COUNT rules.
///
/// decide/MIX/COUNT asks for names in turn: a quarter is decided by an early rule, a quarter by a late one, and half by
/// the implicit end, which is the longest way. mixed has literals, "prefix*", "*suffix", "*middle*", "x[0-9]?*" in
/// equal parts; loose has nothing but sets and '?', which no table helps with; one_piece has all patterns share their
/// only literal characters. The baseline of the same run scans the same rules from the top (naive_ns); ns is decide's
/// mean, worst_ns the slowest of the names, each at its best of several passes. The target is 50 us at 10,000 rules
/// of the mixed kind.
/// make/COUNT makes a Rights of mixed rules.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "guestmem/share/rights.hpp"
#include "guestmem/share/wildcard.hpp"

namespace guestmem::share {
namespace {

using Clock = std::chrono::steady_clock;

enum class Mix : std::uint8_t { mixed, loose, one_piece };

std::string pattern_of(Mix mix, std::size_t i) {
    const auto letter = [](std::size_t n) { return static_cast<char>('a' + n % 26); };
    if (mix == Mix::loose)
        return fmt::format("[{}{}][{}-z]?[!{}]*[{}{}]", letter(i), letter(i / 7), letter(i / 26),
                           letter(i / 5), letter(i / 3), letter(i / 11));
    if (mix == Mix::one_piece) return fmt::format("vm*[{}{}]?[{}]", letter(i), letter(i / 26), letter(i / 9));
    switch (i % 5) {
        case 0: return fmt::format("share-{}", i);
        case 1: return fmt::format("p{}-*", i);
        case 2: return fmt::format("*-s{}", i);
        case 3: return fmt::format("*-m{}-*", i);
        default: return fmt::format("x[0-9]?{}*", i);
    }
}

std::vector<Rule> rules_of(Mix mix, std::size_t count) {
    std::vector<Rule> rules;
    for (std::size_t i = 0; i < count; ++i)
        rules.push_back({.verdict = i % 2 == 0 ? Verdict::allow : Verdict::deny,
                         .pattern = pattern_of(mix, i),
                         .permissions = {},
                         .line = 0});
    return rules;
}

std::vector<std::string> names_of(std::size_t count) {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < 16; ++i) {
        names.push_back(fmt::format("share-{}", i * 5));
        names.push_back(fmt::format("name-m{}-end", (count - 1 - i) / 5 * 5 + 3));
        names.push_back(fmt::format("nobody-has-this-name-{}", i));
        names.push_back(fmt::format("vm-{}~{}", i, std::string(20, '.')));
    }
    return names;
}

std::optional<std::size_t> scan(const std::vector<Wildcard>& wildcards, std::string_view name) {
    for (std::size_t i = 0; i < wildcards.size(); ++i)
        if (wildcards[i].matches(name)) return i;
    return std::nullopt;
}

/// The best time per call of some passes.
template <typename Call>
double best_ns(Call call) {
    double best = std::numeric_limits<double>::max();
    for (int pass = 0; pass < 5; ++pass) {
        const auto start = Clock::now();
        call();
        best = std::min(best, std::chrono::duration<double, std::nano>(Clock::now() - start).count());
    }
    return best;
}

void decide(benchmark::State& state, Mix mix) {
    const auto count = static_cast<std::size_t>(state.range(0));
    const std::vector<Rule> rules = rules_of(mix, count);
    const Rights rights{rules};
    std::vector<Wildcard> wildcards;
    for (const Rule& rule : rules) wildcards.push_back(Wildcard::parse(rule.pattern).value());
    const std::vector<std::string> names = names_of(count);

    double sum = 0;
    double worst = 0;
    double naive = 0;
    for (auto _ : state) {
        sum = worst = naive = 0;
        for (const std::string& name : names) {
            if (rights.decide(name).rule != scan(wildcards, name))
                return state.SkipWithError("they disagree");
            const double one = best_ns([&] { benchmark::DoNotOptimize(rights.decide(name)); });
            sum += one;
            worst = std::max(worst, one);
            naive += best_ns([&] { benchmark::DoNotOptimize(scan(wildcards, name)); });
        }
    }
    const auto count_names = static_cast<double>(names.size());
    state.counters["ns"] = sum / count_names;
    state.counters["worst_ns"] = worst;
    state.counters["naive_ns"] = naive / count_names;
    state.counters["naive_over"] = naive / sum;
}

void make(benchmark::State& state) {
    const std::vector<Rule> rules = rules_of(Mix::mixed, static_cast<std::size_t>(state.range(0)));
    for (auto _ : state) benchmark::DoNotOptimize(Rights{rules});
}

BENCHMARK_CAPTURE(decide, mixed, Mix::mixed)->Arg(10)->Arg(1000)->Arg(10'000);
BENCHMARK_CAPTURE(decide, loose, Mix::loose)->Arg(1000)->Arg(10'000);
BENCHMARK_CAPTURE(decide, one_piece, Mix::one_piece)->Arg(10'000);
BENCHMARK(make)->Arg(10'000)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace guestmem::share

BENCHMARK_MAIN();
