// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/dma_commands.hpp"

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "guestmem/cli/dma_options.hpp"

namespace guestmem::cli {
namespace {

template <typename Options>
Action action(const std::shared_ptr<Options>& options, int (*run)(const Options&)) {
    return [options, run] { return run(*options); };
}

void add_machine_options(CLI::App& app, DmaOptions& options) {
    app.add_option("--root", options.root,
                   "A captured machine: the archive of 'dma capture', or the folder where it is unpacked");
    app.add_flag("--json", options.json, "Print JSON for programs");
    app.add_option(
        "WORDS", options.words,
        "What you know better than the firmware, as smmuman has it: smmu, unit, device, reserved, allow, "
        "@FILE (docs/guide/smmu-words.md)");
}

}  // namespace

Action describe_dma_discover(CLI::App& app) {
    auto options = std::make_shared<DmaDiscoverOptions>();
    app.footer(
        "Examples:\n"
        "  guestmem dma discover\n"
        "  guestmem dma discover --root machine.tar --svg machine.svg\n"
        "  guestmem dma discover @board.smmu\n"
        "Run it as root: an ordinary user sees neither the firmware's tables nor Access Control Services.\n"
        "Exit codes: 0 done, 1 the machine could not be read or the words cannot be followed, 2 wrong words.");
    add_machine_options(app, *options);
    app.add_option("--svg", options->svg,
                   "Write a picture into this file ('-': standard output, and nothing else)");
    app.add_flag("--bridges", options->has_bridges, "Show bridges and IOMMUs that stand alone, too");
    app.add_flag("--details", options->has_details,
                 "Show identities, reserved ranges and origins of each device");
    return action(options, &dma_discover);
}

Action describe_dma_check(CLI::App& app) {
    auto options = std::make_shared<DmaOptions>();
    app.footer(
        "Example: guestmem dma check || echo 'some device reaches memory that nobody gave it'\n"
        "Exit codes: 0 no risk was found (there may be notes), 1 there are risks, or the machine could not be read,\n"
        "2 wrong words.");
    add_machine_options(app, *options);
    return action(options, &dma_check);
}

Action describe_dma_plan(CLI::App& app) {
    auto options = std::make_shared<DmaPlanOptions>();
    app.footer(
        "Examples:\n"
        "  guestmem dma plan --config grants.toml\n"
        "  guestmem dma plan --config grants.toml --vm cluster --json\n"
        "Changes nothing on the machine. docs/guide/dma.md has the file's keys.\n"
        "Exit codes: 0 it would work, 1 it would not, or the file or the machine could not be read, 2 wrong words.");
    add_machine_options(app, *options);
    app.add_option("--config", options->config, "The grants: which VM has which device, and what it reaches")
        ->required();
    app.add_option("--vm", options->vm, "Print this VM's part only");
    app.add_flag("--all", options->has_all, "Print every mapping, however many there are");
    return action(options, &dma_plan);
}

Action describe_dma_capture(CLI::App& app) {
    auto options = std::make_shared<DmaCaptureOptions>();
    app.footer(
        "Examples:\n"
        "  guestmem dma capture machine.tar\n"
        "  guestmem dma capture --list\n"
        "  guestmem dma capture --script > capture.sh    # for a machine without guestmem: sh capture.sh machine.tar\n"
        "Run it as root. No serial numbers, addresses of network cards or names of users are taken; --list says what\n"
        "is. Exit codes: 0 done, 1 failed, 2 wrong words.");
    auto* const archive =
        app.add_option("OUT.tar", options->archive,
                       "The archive to write, readable by its owner only ('-': standard output)");
    auto* const script =
        app.add_flag("--script", options->is_script, "Print a shell script that does the same");
    auto* const list = app.add_flag("--list", options->is_list, "Print what would be taken, and why");
    app.add_option("--root", options->root, "Capture a captured machine again")
        ->excludes(script)
        ->excludes(list);
    script->excludes(archive)->excludes(list);
    list->excludes(archive);
    return action(options, &dma_capture);
}

}  // namespace guestmem::cli
