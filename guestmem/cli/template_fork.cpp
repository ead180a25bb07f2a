// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/cli/exit_codes.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/cli/template_commands.hpp"
#include "guestmem/cli/template_offer.hpp"
#include "guestmem/cli/template_qemu.hpp"
#include "guestmem/cli/template_store.hpp"
#include "guestmem/mem/backends/size_text.hpp"
#include "guestmem/mem/backends/usage.hpp"
#include "guestmem/mem/paging/remote_source.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/process_memory.hpp"

namespace guestmem::cli {
namespace {

struct Options {
    std::string name;
    std::string store;
    std::uint64_t count = 1;
    bool json = false;
    bool is_held = false;
    bool is_qemu = false;
    std::vector<std::string> command;
    std::string mode;  ///< empty: map; with `from`: lazy
    std::string from;  ///< socket of a page server
    bool is_filled = false;
    double patience_s = 5;
};

struct Made {
    Manifest manifest;
    std::vector<Fork> forks;
    std::chrono::nanoseconds time{};
};

std::chrono::milliseconds patience_of(const Options& options) {
    return std::chrono::milliseconds{static_cast<std::int64_t>(options.patience_s * 1000)};
}

LazyOptions to_lazy(const Options& options) {
    return {.is_filled = options.is_filled,
            .patience = patience_of(options),
            .on_failure = [](const Error& error) { report(error); }};
}

Result<Fork> fork_from_server(const Options& options, Manifest& manifest) {
    RemoteOptions remote;
    remote.receive.patience = patience_of(options);
    auto source = GM_TRY(RemoteSource::connect(options.from, std::move(remote)));
    manifest = GM_TRY(manifest_of(source->greeting()));
    if (options.mode == "copy") return restore_by_copying(manifest, *source);
    return restore_lazily(manifest, std::move(source), to_lazy(options));
}

Result<Made> make(const Options& options) {
    Made made;
    made.forks.reserve(options.count);
    std::shared_ptr<const Template> opened;
    guestmem::ForkOptions how;
    if (options.from.empty()) {
        opened = GM_TRY(Template::open(template_folder(options.store, options.name)));
        made.manifest = opened->manifest();
        how.mode = options.mode == "map"    ? RestoreMode::map
                   : options.mode == "copy" ? RestoreMode::copy
                                            : RestoreMode::lazy;
        how.lazy = to_lazy(options);
    }
    const auto begin = std::chrono::steady_clock::now();
    for (std::uint64_t i = 0; i < options.count; ++i) {
        Fork fork = opened ? GM_TRY(opened->fork(how)) : GM_TRY(fork_from_server(options, made.manifest));
        made.forks.push_back(std::move(fork));
    }
    made.time = std::chrono::steady_clock::now() - begin;
    return made;
}

Result<void> wait_until_filled(const Options& options, const Made& made) {
    for (const Fork& fork : made.forks) {
        if (!fork.pager || !options.is_filled) continue;
        // As long as it comes at all, it may take its time: who stalls fails the pager.
        while (!fork.pager->is_filled()) {
            GM_TRY(fork.pager->health());
            std::this_thread::sleep_for(std::chrono::milliseconds{5});
        }
    }
    return {};
}

MemoryUsage usage_of_fork(const Fork& fork, std::span<const ProcessMapping> mappings) {
    std::vector<HostRange> ranges;
    for (const auto& region : fork.regions)
        ranges.push_back(
            {reinterpret_cast<std::uintptr_t>(region->host_base()), region->range().size_bytes()});
    return usage_of(ranges, mappings);
}

void print_line(const Fork& fork, const MemoryUsage& usage, bool json) {
    const PagerCounters counters = fork.pager ? fork.pager->counters() : PagerCounters{};
    if (json)
        return print(nlohmann::json{{"generation", fork.generation},
                                    {"mapped_bytes", usage.mapped_bytes},
                                    {"shared_bytes", usage.shared_bytes},
                                    {"private_bytes", usage.private_bytes},
                                    {"untouched_bytes", usage.untouched_bytes()},
                                    {"proportional_bytes", usage.proportional_bytes},
                                    {"faults", counters.faults},
                                    {"pages_ahead", counters.pages_ahead}}
                         .dump() +
                     "\n");
    print(fmt::format("{:<34} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8}\n", fork.generation,
                      format_qemu_size(usage.mapped_bytes), format_qemu_size(usage.shared_bytes),
                      format_qemu_size(usage.private_bytes), format_qemu_size(usage.untouched_bytes()),
                      format_qemu_size(usage.proportional_bytes), counters.faults));
}

Result<void> print_bill(const Made& made, bool json) {
    const ProcessFaults faults = GM_TRY(process_faults(own_process()));
    const std::vector<ProcessMapping> mappings = GM_TRY(own_mappings());
    MemoryUsage all;
    if (!json)
        print(fmt::format("{:<34} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8}\n", "GENERATION", "MAPPED", "SHARED",
                          "PRIVATE", "UNTOUCHED", "PSS", "FAULTS"));
    for (const Fork& fork : made.forks) {
        const MemoryUsage usage = usage_of_fork(fork, mappings);
        all.add(usage);
        print_line(fork, usage, json);
    }
    const double each_us =
        std::chrono::duration<double, std::micro>(made.time).count() / static_cast<double>(made.forks.size());
    if (!json)
        print(fmt::format("{} forks in {:.1f} us each, {} private in all; {} page faults of this process\n",
                          made.forks.size(), each_us, format_qemu_size(all.private_bytes),
                          faults.minor + faults.major));
    return {};
}

int wrong_words(std::string_view what) {
    fmt::print(stderr, "guestmem: {}\n", to_printable(what));
    return exit_usage;
}

int run_qemus(const Options& options) {
    if (options.is_held) return wrong_words("--hold is for forks without --qemu");
    if (options.count > max_qemu_forks)
        return wrong_words(fmt::format("--count: at most {} with --qemu", max_qemu_forks));
    if (const std::string fault = fault_of_command(options.command); !fault.empty())
        return wrong_words(fault);
    const auto are_good = fork_into_qemus({.folder = template_folder(options.store, options.name),
                                           .count = options.count,
                                           .command = options.command,
                                           .json = options.json});
    if (!are_good) return report(are_good.error());
    return *are_good ? exit_ok : exit_failed;
}

/// Why these words do not fit together; empty: they do.
std::string fault_of(const Options& options) {
    const bool is_lazy = options.mode == "lazy";
    if (options.name.empty() == options.from.empty()) return "either NAME or --from says where the memory is";
    if (!options.from.empty() && (options.is_qemu || options.mode == "map"))
        return "pages of a server cannot be mapped: --mode lazy or copy, without --qemu";
    if (options.is_qemu && options.mode != "map") return "--mode is for forks without --qemu";
    if (!is_lazy && options.is_filled) return "--fill is for --mode lazy";
    return {};
}

int run(const Options& options) {
    if (const std::string fault = fault_of(options); !fault.empty()) return wrong_words(fault);
    if (options.is_qemu) return run_qemus(options);
    if (!options.command.empty()) return wrong_words("a command line is for --qemu");
    const auto made = make(options);
    if (!made) return report(made.error());
    if (const auto filled = wait_until_filled(options, *made); !filled) return report(filled.error());
    if (const auto printed = print_bill(*made, options.json); !printed) return report(printed.error());
    if (options.is_held) {
        fmt::print(stderr, "held until the end of standard input\n");
        std::cin.ignore(std::numeric_limits<std::streamsize>::max());
    }
    return exit_ok;
}

}  // namespace

Action describe_template_fork(CLI::App& app) {
    auto options = std::make_shared<Options>();
    app.footer(
        "Example: guestmem template fork base --count 10 --hold\n"
        "         guestmem template fork base --qemu --count 10 -- qemu-system-x86_64 -machine "
        "q35,memory-backend=ram0\n"
        "         guestmem template fork --from /run/base.pages --fill\n"
        "Makes the memory of so many VMs in this process, and says what each takes. With --qemu it starts so many\n"
        "QEMUs instead, each going on from the template, and waits until they end. Their command line is that of the\n"
        "QEMU from which the template was made, but without its memory backend; {index} and {generation} in it stand\n"
        "for those of each fork. docs/guide/templates.md has more.\n"
        "FAULTS are touches that waited for a page of a lazy fork; `guestmem template show --live` has more.\n"
        "Exit codes: 0 done, 1 it cannot be forked, or a QEMU ended with an error, 2 wrong words,\n"
        "3 pages did not come within the patience.");
    app.add_option("NAME", options->name, "A template in the store, or the path of its folder");
    app.add_option("--mode", options->mode,
                   "map: the image's pages (usual); copy: all pages at once; lazy: a page comes when it is "
                   "touched (usual with --from)")
        ->check(CLI::IsMember({"map", "copy", "lazy"}));
    app.add_option("--from", options->from, "The socket of `guestmem template serve`, instead of NAME");
    app.add_flag("--fill", options->is_filled, "Lazy: fetch everything, and wait for it");
    app.add_option("--patience", options->patience_s, "Seconds that a page may take to come")
        ->check(CLI::Range(0.01, 3600.0))
        ->capture_default_str();
    app.add_flag("--qemu", options->is_qemu, "Start a QEMU for each");
    app.add_option("COMMAND", options->command, "With --qemu, behind --: QEMU and its words");
    app.add_option("--count", options->count, "How many")
        ->check(CLI::Range(1, 100'000))
        ->capture_default_str();
    app.add_flag("--hold", options->is_held, "Keep them until the end of standard input");
    add_store_option(app, options->store);
    app.add_flag("--json", options->json, "Print a line of JSON for each");
    return [options] {
        if (options->mode.empty()) options->mode = options->from.empty() ? "map" : "lazy";
        return run(*options);
    };
}

}  // namespace guestmem::cli
