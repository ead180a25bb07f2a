// SPDX-License-Identifier: Apache-2.0
/// The works of the share service that have a target: prints a table of what was reached, beside what, and the target.
#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <optional>
#include <span>
#include <string_view>

#include "bench/share/works.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::bench {
namespace {

constexpr std::string_view usage =
    R"(usage: share_works --guestmem PROGRAM [--slots N] [--rounds N] [--kicks N]
                   [--rules N] [--only WORK] [--json] [--strict]

  --guestmem PROGRAM  guestmem of a release build
  --slots N           of the share that a crowd joins, and of the one that is taken over (default: 1000)
  --rounds N          rounds that count (default: 3)
  --kicks N           there and back, of 20 runs together (default: 20000)
  --rules N           of the VM that wants to attach (default: 10000)
  --only WORK         join, kick, take-over or rights
  --json              a JSON object per row instead of the table
  --strict            status 1 when a target is not reached

A row has a median of the rounds. Where a peer was measured in the same run, in turns, the target bounds the ratio.

example: share_works --guestmem build/release/bin/guestmem --only kick
)";

struct Options {
    Scale scale;
    std::string_view only;
    bool is_json = false;
    bool is_strict = false;
};

std::optional<std::uint32_t> number_of(std::string_view text) {
    std::uint32_t number = 0;
    const auto [last, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc{} || last != text.data() + text.size() || number == 0) return std::nullopt;
    return number;
}

/// Nothing when the command line says something else.
std::optional<Options> parse(std::span<char* const> arguments) {
    Options options;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        const std::string_view word{arguments[i]};
        if (word == "--json" || word == "--strict") {
            (word == "--json" ? options.is_json : options.is_strict) = true;
            continue;
        }
        if (++i == arguments.size()) return std::nullopt;
        const std::string_view value{arguments[i]};
        if (word == "--guestmem") {
            options.scale.program = value;
            continue;
        }
        if (word == "--only") {
            options.only = value;
            continue;
        }
        std::uint32_t* const place = word == "--slots"    ? &options.scale.slots
                                     : word == "--rounds" ? &options.scale.rounds
                                     : word == "--kicks"  ? &options.scale.kicks
                                     : word == "--rules"  ? &options.scale.rules
                                                          : nullptr;
        const auto number = number_of(value);
        if (place == nullptr || !number) return std::nullopt;
        *place = *number;
    }
    if (options.scale.program.empty()) return std::nullopt;
    return options;
}

void print_row(const Row& row) {
    fmt::print("  {:<38} {:9.2f}", row.work, row.reached);
    if (row.peer > 0) {
        fmt::print(" / {:9.2f} {:<3} = {:6.2f}", row.peer, row.unit, row.judged());
    } else {
        fmt::print(" {:<24}", row.unit);
    }
    if (row.target) fmt::print("  at most {:.2f}{}", *row.target, row.is_reached() ? "" : ": not reached");
    fmt::print("\n");
}

void print_json(const Row& row) {
    fmt::print(R"({{"work": "{}", "unit": "{}", "reached": {}, "peer": {}, "target": {}, "is_reached": {}}})"
               "\n",
               row.work, row.unit, row.reached, row.peer, row.target ? fmt::to_string(*row.target) : "null",
               row.is_reached());
}

int run(std::span<char* const> arguments) {
    if (arguments.size() == 1 && std::string_view{arguments[0]} == "--help") {
        fmt::print("{}", usage);
        return 0;
    }
    const std::optional<Options> options = parse(arguments);
    if (!options) {
        fmt::print(stderr, "{}", usage);
        return 2;
    }
    raise_descriptor_limit();
    struct Work {
        std::string_view name;
        void (*measure)(const Scale&, Table&);
    };
    constexpr Work works[] = {{"rights", measure_rights},
                              {"kick", measure_kick},
                              {"join", measure_join},
                              {"take-over", measure_take_over}};
    bool is_good = true;
    if (!options->is_json) fmt::print("share: reached / peer = ratio, target\n");
    for (const Work& work : works) {
        if (!options->only.empty() && options->only != work.name) continue;
        Table table;
        work.measure(options->scale, table);
        for (const Row& row : table) {
            options->is_json ? print_json(row) : print_row(row);
            is_good = is_good && row.is_reached();
        }
        std::fflush(stdout);
    }
    return is_good || !options->is_strict ? 0 : 1;
}

}  // namespace
}  // namespace guestmem::bench

int main(int argc, char** argv) {
    return guestmem::bench::run({argv + 1, static_cast<std::size_t>(argc - 1)});
}
