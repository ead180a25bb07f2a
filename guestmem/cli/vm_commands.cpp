// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/vm_commands.hpp"

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "guestmem/cli/vm_options.hpp"

namespace guestmem::cli {
namespace {

constexpr const char* exit_codes =
    "Exit codes: 0 done, 1 the machine is not there or said no, 2 wrong words, 3 the time has passed.";

template <typename Options>
Action action(const std::shared_ptr<Options>& options, int (*run)(const Options&)) {
    return [options, run] { return run(*options); };
}

void add_footer(CLI::App& app, const std::string& text) { app.footer(text + "\n" + exit_codes); }

/// NAME, or its socket. Further words stand behind the name, so --control does not take its place.
void add_vm_options(CLI::App& app, VmOptions& options) {
    app.add_option("NAME", options.name, "Name of the machine: its 'system' line")->required();
    app.add_option("--control", options.control,
                   "The machine's control socket (else vm-NAME.control in /run/guestmem or "
                   "$XDG_RUNTIME_DIR/guestmem)");
    app.add_flag("--json", options.json, "Print JSON for programs");
}

/// CLI11 reads "-1" as a huge number and "010" as 8.
CLI::Validator is_address() {
    return CLI::Validator{
        [](std::string& word) {
            const bool is_hex = word.starts_with("0x") && word.size() > 2 &&
                                word.find_first_not_of("0123456789abcdefABCDEF", 2) == std::string::npos;
            const bool is_decimal =
                word == "0" || (!word.empty() && word.front() != '0' &&
                                word.find_first_not_of("0123456789") == std::string::npos);
            return is_hex || is_decimal ? std::string{} : "'" + word + "' is no address, as in 0x40000000";
        },
        "ADDRESS"};
}

template <typename Options>
Action describe(CLI::App& app, const std::string& footer, int (*run)(const Options&)) {
    auto options = std::make_shared<Options>();
    add_footer(app, footer);
    add_vm_options(app, *options);
    return action(options, run);
}

}  // namespace

Action describe_vm_list(CLI::App& app) {
    auto options = std::make_shared<VmListOptions>();
    add_footer(app,
               "Example: guestmem vm list --json\n"
               "Those that this user has started. Sockets that killed machines left are removed.");
    app.add_flag("--json", options->json, "Print JSON for programs");
    return action(options, &vm_list);
}

Action describe_vm_stat(CLI::App& app) {
    return describe(app, "Example: guestmem vm stat cluster", &vm_stat);
}

Action describe_vm_map(CLI::App& app) {
    return describe(app, "Example: guestmem vm map cluster --json", &vm_map);
}

Action describe_vm_pause(CLI::App& app) {
    return describe(
        app,
        "Example: guestmem vm pause cluster\n"
        "The guest and its time stand still when this returns. Pausing what is paused changes nothing.",
        &vm_pause);
}

Action describe_vm_resume(CLI::App& app) {
    return describe(app, "Example: guestmem vm resume cluster", &vm_resume);
}

Action describe_vm_stop(CLI::App& app) {
    auto options = std::make_shared<VmStopOptions>();
    add_footer(app,
               "Example: guestmem vm stop cluster\n"
               "The guest is not asked; power-button asks it. Returns when the machine is gone.");
    add_vm_options(app, *options);
    app.add_option("--timeout", options->timeout_seconds, "Seconds to wait for its end (10)")
        ->check(CLI::Range(0.0, 86'400.0));
    return action(options, &vm_stop);
}

Action describe_vm_power_button(CLI::App& app) {
    return describe(app,
                    "Example: guestmem vm power-button cluster\n"
                    "What the guest does about it is its own decision.",
                    &vm_power_button);
}

Action describe_vm_attach(CLI::App& app) {
    auto options = std::make_shared<VmAttachOptions>();
    add_footer(app,
               "Example: guestmem vm attach cluster mailbox --at 0x40000000\n"
               "The share appears as plain memory; nothing tells the guest where.");
    add_vm_options(app, *options);
    app.add_option("SHARE", options->share, "Name of the share")->required();
    app.add_option("--at", options->address, "Guest address, as in 0x40000000; else the machine chooses")
        ->check(is_address());
    return action(options, &vm_attach);
}

Action describe_vm_detach(CLI::App& app) {
    auto options = std::make_shared<VmDetachOptions>();
    add_footer(app, "Example: guestmem vm detach cluster mailbox");
    add_vm_options(app, *options);
    app.add_option("SHARE", options->share, "Name of a share that was attached by 'vm attach'")->required();
    return action(options, &vm_detach);
}

Action describe_vm_dirty(CLI::App& app) {
    auto options = std::make_shared<VmDirtyOptions>();
    add_footer(
        app,
        "Examples:\n"
        "  guestmem vm dirty cluster on\n"
        "  guestmem vm dirty cluster harvest\n"
        "harvest prints what was written since the last harvest, by the guest or by its devices: first address\n"
        "and bytes, a line each.");
    add_vm_options(app, *options);
    app.add_option("VERB", options->verb, "on, off, or harvest")
        ->required()
        ->check(CLI::IsMember({"on", "off", "harvest"}));
    return action(options, &vm_dirty);
}

}  // namespace guestmem::cli
