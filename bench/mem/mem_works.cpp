// SPDX-License-Identifier: Apache-2.0
/// The works of bench/mem with this library and through raw pointers; prints a JSON object per figure for compare.py.
#include <charconv>
#include <cstdio>
#include <optional>
#include <span>
#include <string_view>

#include "bench/mem/works.hpp"
#include "guestmem/base/check.hpp"
#include "guestmem/sys/fault_guard.hpp"

namespace guestmem::bench {
namespace {

constexpr std::string_view usage = R"(usage: mem_works [--budget-ms N]

Does the works that bench/mem/README.md defines and prints a JSON object per figure.
Each figure takes N ms (default: 12), and at least five passes.

example: mem_works --budget-ms 2
)";

/// Nothing when the command line says something else.
std::optional<Budget> budget_of(std::span<char* const> arguments) {
    if (arguments.empty()) return Budget{12};
    if (arguments.size() != 2 || std::string_view{arguments[0]} != "--budget-ms") return std::nullopt;
    const std::string_view text{arguments[1]};
    unsigned number = 0;
    const auto [last, error] = std::from_chars(text.begin(), text.end(), number);
    if (error != std::errc{} || last != text.end()) return std::nullopt;
    return Budget{number};
}

void measure_all(Budget budget) {
    fmt::print(R"({{"program": "guestmem", "compiler": "{} {}"}})"
               "\n",
#if defined(__clang__)
               "clang",
#else
               "g++",
#endif
               __VERSION__);
    for (const LayoutKind layout : all_layouts) {
        for (const std::uint64_t regions : {1U, 4U, 64U, 1024U}) measure_objects(layout, regions, budget);
        measure_build(layout, budget);
    }
    for (const std::uint64_t regions : {1U, 64U, 1024U}) measure_two_threads(regions, budget);
    for (const std::uint64_t regions : {4U, 64U, 1024U}) measure_straddling(regions, budget);
    measure_copies(budget);
    measure_dirty_log(budget);
    measure_snapshot(budget);
    measure_guarded(LayoutKind::adjacent, budget);
    measure_guarded(LayoutKind::clusters, budget);
    measure_fault(budget);
}

int run(std::span<char* const> arguments) {
    if (arguments.size() == 1 && std::string_view{arguments[0]} == "--help") {
        fmt::print("{}", usage);
        return 0;
    }
    const std::optional<Budget> budget = budget_of(arguments);
    if (!budget) {
        fmt::print(stderr, "{}", usage);
        return 2;
    }
    GM_CHECK(install_fault_guard().has_value());
    measure_all(*budget);
    return 0;
}

}  // namespace
}  // namespace guestmem::bench

int main(int argc, char** argv) {
    return guestmem::bench::run({argv + 1, static_cast<std::size_t>(argc - 1)});
}
