// SPDX-License-Identifier: Apache-2.0
#include <fmt/chrono.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/cli/exit_codes.hpp"
#include "guestmem/cli/progress_bar.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/cli/template_commands.hpp"
#include "guestmem/cli/template_live.hpp"
#include "guestmem/cli/template_store.hpp"
#include "guestmem/mem/backends/size_text.hpp"
#include "guestmem/mem/template/lease.hpp"
#include "guestmem/mem/template/store.hpp"
#include "guestmem/mem/template/template.hpp"

namespace guestmem::cli {
namespace {

struct ShowOptions {
    std::string name;
    std::string store;
    bool json = false;
    bool is_live = false;
    LiveOptions live;
};

std::string time_of(std::uint64_t seconds) {
    constexpr std::uint64_t last = 253'402'300'799;  // the year 9999
    if (seconds > last) return "?";
    return fmt::format("{:%Y-%m-%d %H:%M}", fmt::localtime(static_cast<std::time_t>(seconds)));
}
std::string stored_size(const Manifest& manifest) {
    return format_qemu_size(manifest.data_pages * page_size_bytes);
}

int list(const ShowOptions& options) {
    const auto names = list_templates(options.store);
    if (!names) return report(names.error());
    nlohmann::json all = nlohmann::json::array();
    if (!options.json)
        print(fmt::format("{:<30} {:>8} {:>8} {:>5}  {}\n", "NAME", "MEMORY", "STORED", "FORKS", "MADE"));
    int code = exit_ok;
    for (const std::string& name : *names) {
        const std::string folder = template_folder(options.store, name);
        const auto opened = Template::open(folder);
        const auto tenants = tenants_of(folder);
        if (!opened || !tenants) {
            // The others are listed all the same.
            code = report(opened ? tenants.error() : opened.error());
            continue;
        }
        const Manifest& manifest = (*opened)->manifest();
        if (options.json)
            all.push_back({{"name", name},
                           {"id", manifest.id},
                           {"image_bytes", manifest.image_bytes},
                           {"data_bytes", manifest.data_pages * page_size_bytes},
                           {"made_at", manifest.made_at_s},
                           {"processes", tenants->size()}});
        else
            print(fmt::format("{:<30} {:>8} {:>8} {:>5}  {}\n", name, format_qemu_size(manifest.image_bytes),
                              stored_size(manifest), tenants->size(), time_of(manifest.made_at_s)));
    }
    if (options.json) print(all.dump(2) + "\n");
    return code;
}

int show(const ShowOptions& options) {
    const std::string folder = template_folder(options.store, options.name);
    if (options.is_live) return show_live(folder, options.json, options.live);
    const auto opened = Template::open(folder);
    if (!opened) return report(opened.error());
    const auto tenants = tenants_of(folder);
    if (!tenants) return report(tenants.error());
    const Manifest& manifest = (*opened)->manifest();
    if (options.json) {
        nlohmann::json object = nlohmann::json::parse(to_text(manifest));
        object["folder"] = folder;
        object["processes"] = nlohmann::json::array();
        for (const Tenant& tenant : *tenants)
            object["processes"].push_back({{"pid", tenant.pid}, {"since", tenant.since_s}});
        print(object.dump(2, ' ', true, nlohmann::json::error_handler_t::replace) + "\n");
        return exit_ok;
    }
    std::string text =
        fmt::format("{}\n  id       {}\n  made     {} by user {}\n  memory   {}, {} stored\n",
                    to_printable(folder), manifest.id, time_of(manifest.made_at_s), manifest.owner,
                    format_qemu_size(manifest.image_bytes), stored_size(manifest));
    if (manifest.parent)
        text += fmt::format("  parent   {} ({} pages are not as there)\n", manifest.parent->name,
                            manifest.parent->count_pages);
    if (manifest.encoding != ImageEncoding::raw)
        text +=
            fmt::format("  image    {} in {} bytes\n", to_string(manifest.encoding), manifest.stored_bytes);
    for (const ImageRegion& region : manifest.regions)
        text += fmt::format("           {:#014x}  {:>8}  {} {}\n", region.guest_address,
                            format_qemu_size(region.size_bytes), region.is_rom ? "ROM" : "RAM",
                            to_printable(region.name));
    text += fmt::format("  state    {} bytes\n", manifest.state_bytes);
    for (const auto& [key, value] : manifest.provenance)
        text += fmt::format("  note     {}: {}\n", to_printable(key), to_printable(value));
    for (const Tenant& tenant : *tenants)
        text += fmt::format("  in use   by process {} since {}\n", tenant.pid, time_of(tenant.since_s));
    print(text);
    return exit_ok;
}

int verify(const ShowOptions& options) {
    const auto opened = Template::open(template_folder(options.store, options.name));
    if (!opened) return report(opened.error());
    const Manifest& manifest = (*opened)->manifest();
    TemplateCheck check;
    {
        ProgressBar bar{options.name, manifest.image_bytes};
        auto verified = (*opened)->verify([&](std::uint64_t done) { bar.show(done); });
        if (!verified) return report(verified.error());
        check = *std::move(verified);
    }
    if (options.json) {
        nlohmann::json bad = nlohmann::json::array();
        for (const BadPage& page : check.image.bad)
            bad.push_back({{"image_offset", page.image_offset_bytes},
                           {"place", place_in_guest(manifest, page.image_offset_bytes)}});
        print(nlohmann::json{{"is_good", check.is_good()},
                             {"count_bad", check.image.count_bad},
                             {"bad", bad},
                             {"sums_fit", check.sums_fit},
                             {"state_fits", check.state_fits}}
                  .dump(2) +
              "\n");
    } else {
        for (const BadPage& page : check.image.bad)
            print(fmt::format("changed: the page at {}\n",
                              to_printable(place_in_guest(manifest, page.image_offset_bytes))));
        if (check.image.count_bad > check.image.bad.size())
            print(fmt::format("changed: {} more pages\n", check.image.count_bad - check.image.bad.size()));
        if (!check.sums_fit) print("changed: the sums are not those of the manifest\n");
        if (!check.state_fits) print("changed: the state\n");
        if (check.is_good())
            print(fmt::format("{}: {} pages and the state are as they were\n", options.name,
                              manifest.data_pages));
    }
    return check.is_good() ? exit_ok : exit_failed;
}

int remove(const ShowOptions& options) {
    const auto removed = remove_template(template_folder(options.store, options.name));
    return removed ? exit_ok : report(removed.error());
}

using Run = int (*)(const ShowOptions&);
Action describe(CLI::App& app, Run run, const char* footer, bool has_name, bool has_json) {
    auto options = std::make_shared<ShowOptions>();
    app.footer(footer);
    if (has_name)
        app.add_option("NAME", options->name, "A template in the store, or the path of its folder")
            ->required();
    add_store_option(app, options->store);
    if (has_json) app.add_flag("--json", options->json, "Print JSON for programs");
    return [options, run] { return run(*options); };
}

}  // namespace

Action describe_template_list(CLI::App& app) {
    return describe(app, &list,
                    "Example: guestmem template list\nFORKS counts the processes that have forks.\n"
                    "Exit codes: 0 done, 1 a template could not be opened, 2 wrong words.",
                    false, true);
}
Action describe_template_show(CLI::App& app) {
    auto options = std::make_shared<ShowOptions>();
    app.footer(
        "Examples: guestmem template show base\n"
        "          guestmem template show base --live\n"
        "--live shows what each process takes that has forks: SHARED with others and PRIVATE to it are in memory,\n"
        "UNTOUCHED is not; PSS counts each page in equal parts for all who map it; FAULTS are those of the whole\n"
        "process; START is how long a fork took until its guest ran, where a VMM said so. On a terminal the table is\n"
        "drawn again until Ctrl-C; elsewhere tables follow each other, with --json one line each.\n"
        "Exit codes: 0 done, 1 it cannot be opened, 2 wrong words.");
    app.add_option("NAME", options->name, "A template in the store, or the path of its folder")->required();
    auto* const live = app.add_flag("--live", options->is_live, "What its forks take, again and again");
    app.add_option("--interval", options->live.interval_s, "Seconds between two tables")
        ->check(CLI::Range(0.05, 3600.0))
        ->capture_default_str()
        ->needs(live);
    app.add_option("--times", options->live.count, "How many tables; 0: until Ctrl-C")
        ->check(CLI::Range(0, 1'000'000'000))
        ->capture_default_str()
        ->needs(live);
    add_store_option(app, options->store);
    app.add_flag("--json", options->json, "Print JSON for programs");
    return [options] { return show(*options); };
}
Action describe_template_verify(CLI::App& app) {
    return describe(
        app, &verify,
        "Example: guestmem template verify base\nReads every page, and names the guest addresses of those "
        "that changed.\nExit codes: 0 all is as it was, 1 something changed or cannot be read, 2 wrong words.",
        true, true);
}
Action describe_template_rm(CLI::App& app) {
    return describe(app, &remove,
                    "Example: guestmem template rm base\nA template with forks alive stays.\n"
                    "Exit codes: 0 it is gone, 1 it is in use or cannot be removed, 2 wrong words.",
                    true, false);
}

}  // namespace guestmem::cli
