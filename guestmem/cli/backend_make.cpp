// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "guestmem/cli/backend_commands.hpp"
#include "guestmem/cli/backend_plans.hpp"
#include "guestmem/cli/exit_codes.hpp"
#include "guestmem/cli/progress_bar.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/mem/backends/backend.hpp"
#include "guestmem/mem/backends/size_text.hpp"
#include "guestmem/sys/fault_guard.hpp"

namespace guestmem::cli {
namespace {

struct MakeOptions {
    std::vector<std::string> texts;
    bool json = false;
    bool is_held = false;
};

struct Made {
    std::shared_ptr<const Backend> backend;
    std::chrono::nanoseconds time{};
};

Result<Made> make(const BackendPlan& plan) {
    ProgressBar bar{fmt::format("{}: taking pages", plan.options.id), plan.mapped_bytes};
    const auto begin = std::chrono::steady_clock::now();
    Made made;
    made.backend = GM_TRY(Backend::create(plan, [&](std::uint64_t done) { bar.show(done); }));
    made.time = std::chrono::steady_clock::now() - begin;
    return made;
}

void print_made(const Made& made, bool json) {
    const std::string& id = made.backend->options().id;
    const std::uint64_t size_bytes = made.backend->memory()->bytes().size();
    if (json)
        print(
            nlohmann::json{{"id", id}, {"mapped_bytes", size_bytes}, {"made_ns", made.time.count()}}.dump() +
            "\n");
    else
        print(fmt::format("{}: {} made in {:.1f} ms\n", id, format_qemu_size(size_bytes),
                          std::chrono::duration<double, std::milli>(made.time).count()));
}

/// Refusals and warnings, before anything is made.
void complain(const PlannedBackends& planned) {
    for (const BackendPlan& plan : planned.plans)
        if (!plan.problems.all().empty())
            fmt::print(stderr, "{}:\n{}", plan.options.id, problems_text(plan.problems));
    if (!planned.together.all().empty()) fmt::print(stderr, "together:\n{}", problems_text(planned.together));
}

/// Of those that were made before one that failed.
void say_what_stays(const Backend& backend) {
    if (backend.has_made_file())
        fmt::print(stderr, "{}: {} was made, and stays\n", backend.options().id,
                   to_printable(backend.options().mem_path));
}

int make_all(const MakeOptions& options) {
    const auto all = read_backends(options.texts);
    if (!all) return exit_usage;
    const auto planned = plan_backends(*all, false);
    if (!planned) return report(planned.error());
    complain(*planned);
    if (planned->is_refused()) return exit_failed;
    // On kernels that cannot populate pages they are touched.
    if (const auto guard = install_fault_guard(); !guard) return report(guard.error());
    std::vector<Made> kept;
    for (const BackendPlan& plan : planned->plans) {
        auto made = make(plan);
        if (!made) {
            for (const Made& before : kept) say_what_stays(*before.backend);
            return report(made.error());
        }
        print_made(*made, options.json);
        kept.push_back(*std::move(made));
    }
    if (options.is_held) {
        fmt::print(stderr, "held until the end of standard input\n");
        std::cin.ignore(std::numeric_limits<std::streamsize>::max());
    }
    return exit_ok;
}

}  // namespace

Action describe_backend_make(CLI::App& app) {
    auto options = std::make_shared<MakeOptions>();
    app.footer(
        "Examples:\n"
        "  guestmem backend make memory-backend-ram,id=ram0,size=4G,prealloc=on,prealloc-threads=4\n"
        "  guestmem backend make --hold memory-backend-memfd,id=m,size=1G,hugetlb=on\n"
        "The memory goes when the command ends; a file stays or not, as `guestmem backend explain` says.\n"
        "Exit codes: 0 all were made, 1 something is refused or failed, 2 wrong words.");
    app.add_option("BACKEND", options->texts,
                   "A backend in QEMU's words: memory-backend-TYPE,id=NAME,size=SIZE,...")
        ->required();
    app.add_flag("--hold", options->is_held, "Keep them until the end of standard input");
    app.add_flag("--json", options->json, "Print a line of JSON for each");
    return [options] { return make_all(*options); };
}

}  // namespace guestmem::cli
