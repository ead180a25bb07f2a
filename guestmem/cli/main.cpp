// SPDX-License-Identifier: Apache-2.0
// The one program. The table below is the list of its subcommands.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <exception>
#include <span>
#include <vector>

#include "guestmem/base/diagnostic.hpp"
#include "guestmem/cli/backend_commands.hpp"
#include "guestmem/cli/dma_commands.hpp"
#include "guestmem/cli/exit_codes.hpp"
#include "guestmem/cli/run_command.hpp"
#include "guestmem/cli/share_commands.hpp"
#include "guestmem/cli/template_commands.hpp"
#include "guestmem/cli/vm_commands.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::cli {
namespace {

struct Row {
    const char* group;
    const char* name;
    const char* summary;
    Action (*describe)(CLI::App&);
};

constexpr auto table = std::to_array<Row>({
    {"", "run", "Run a virtual machine from a .qvmconf file", &describe_run},
    {"vm", "list", "List the machines that run", &describe_vm_list},
    {"vm", "stat", "Show one machine: processors, exits, devices, shares", &describe_vm_stat},
    {"vm", "map", "Show a machine's memory: addresses, backends, slots", &describe_vm_map},
    {"vm", "pause", "Let a machine and its time stand still", &describe_vm_pause},
    {"vm", "resume", "Let a machine go on", &describe_vm_resume},
    {"vm", "stop", "End a machine", &describe_vm_stop},
    {"vm", "power-button", "Ask the guest to switch itself off", &describe_vm_power_button},
    {"vm", "attach", "Show a share to a running guest as memory", &describe_vm_attach},
    {"vm", "detach", "Take such a share away", &describe_vm_detach},
    {"vm", "dirty", "Log which memory is written, and print it", &describe_vm_dirty},
    {"share", "serve", "Give named memory and doorbells to VMs", &describe_share_serve},
    {"share", "check", "Say what VMs may do by a configuration, and what in it cannot be meant",
     &describe_share_check},
    {"share", "attach-line", "Print what a VM's QEMU or libvirt needs to attach a share",
     &describe_share_attach_line},
    {"share", "reload", "Have the service read its configuration again", &describe_share_reload},
    {"share", "retire", "End the service and leave everything to its next instance", &describe_share_retire},
    {"share", "list", "List the shares of the service", &describe_share_list},
    {"share", "stat", "Show one share: who is there, kicks pending, memory", &describe_share_stat},
    {"share", "write", "Write a message or a file into a share", &describe_share_write},
    {"share", "read", "Read a share", &describe_share_read},
    {"share", "ring", "Ring a peer's doorbell", &describe_share_ring},
    {"share", "send", "Write a message and ring", &describe_share_send},
    {"share", "wait", "Wait for a kick", &describe_share_wait},
    {"share", "client", "A prompt on a share, with the stock client's commands", &describe_share_client},
    {"backend", "explain", "Say what memory backends would do, and what is wrong with them",
     &describe_backend_explain},
    {"backend", "make", "Make memory backends for a while: does it work, how long does it take",
     &describe_backend_make},
    {"backend", "usage", "Show how much of a process' guest memory is there, and as what",
     &describe_backend_usage},
    {"dma", "discover", "Show IOMMUs, devices, and what can only be contained together",
     &describe_dma_discover},
    {"dma", "check", "Say whether devices can reach memory that nobody gave them", &describe_dma_check},
    {"dma", "plan", "Say what would be programmed for VMs' devices, and why it would not work",
     &describe_dma_plan},
    {"dma", "capture", "Write what discovery reads into an archive, to be looked at elsewhere",
     &describe_dma_capture},
    {"template", "make", "Freeze memory into a template", &describe_template_make},
    {"template", "list", "List the templates of a store", &describe_template_list},
    {"template", "show", "Show a template: its layout, where it comes from, who uses it",
     &describe_template_show},
    {"template", "verify", "Read all of a template and find what changed", &describe_template_verify},
    {"template", "diff", "Freeze what is not as in another template", &describe_template_diff},
    {"template", "flatten", "Make one template out of a chain of differences", &describe_template_flatten},
    {"template", "fork", "Map the memory of VMs from a template, and show what they take",
     &describe_template_fork},
    {"template", "serve", "Give pages of a template to who asks for them", &describe_template_serve},
    {"template", "send", "Write a template to a stream", &describe_template_send},
    {"template", "receive", "Make a template of a stream", &describe_template_receive},
    {"template", "rm", "Remove a template that nobody uses", &describe_template_rm},
});

struct Group {
    const char* name;
    const char* summary;
    const char* example;
};

constexpr std::array<Group, 5> groups{{
    {"vm", "Virtual machines that run: look at them, pause and end them", "guestmem vm list"},
    {"share", "Memory between VMs: serve it, look at it, use it from the host",
     "guestmem share serve --help"},
    {"backend", "Where guest memory comes from, in QEMU's words", "guestmem backend explain --help"},
    {"dma", "What devices can reach: IOMMUs, groups, plans for pass-through", "guestmem dma discover"},
    {"template", "Guest memory frozen once and forked many times", "guestmem template make --help"},
}};

/// Says which word is unknown and what is there; 0 when the words name a command, or an option comes first.
int complain_about_words(std::span<char*> words) {
    const auto complain = [](std::string_view word, const std::vector<std::string_view>& known) {
        const std::string_view meant = closest_word(word, known);
        std::string list;
        for (const std::string_view name : known) list += (list.empty() ? "" : ", ") + std::string{name};
        std::fprintf(
            stderr, "guestmem: %s%s; there are: %s\n",
            word.empty() ? "a command is missing" : ("unknown command '" + std::string{word} + "'").c_str(),
            meant.empty() ? "" : (", did you mean '" + std::string{meant} + "'?").c_str(), list.c_str());
        return exit_usage;
    };
    const auto word = [&](std::size_t at) { return std::string_view{words.size() > at ? words[at] : ""}; };
    if (word(1).starts_with('-')) return exit_ok;
    std::vector<std::string_view> known;
    for (const Row& row : table)
        if (std::string_view{row.group}.empty()) known.emplace_back(row.name);
    if (std::ranges::count(known, word(1)) != 0) return exit_ok;
    for (const Group& group : groups) known.emplace_back(group.name);
    if (std::ranges::count(known, word(1)) == 0) return complain(word(1), known);
    if (word(2).starts_with('-')) return exit_ok;
    known.clear();
    for (const Row& row : table)
        if (row.group == word(1)) known.emplace_back(row.name);
    if (std::ranges::count(known, word(2)) == 0) return complain(word(2), known);
    return exit_ok;
}

/// The row that the first words name; none where they ask for help, or are a group's alone.
const Row* named_row(std::span<char*> words) {
    const auto word = [&](std::size_t at) { return std::string_view{words.size() > at ? words[at] : ""}; };
    const auto* const found = std::ranges::find_if(table, [&](const Row& row) {
        const std::string_view group{row.group};
        return group.empty() ? word(1) == row.name : word(1) == group && word(2) == row.name;
    });
    return found == table.end() ? nullptr : found;
}

int run(int count, char** words) {
    if (const int code = complain_about_words({words, static_cast<std::size_t>(count)}); code != exit_ok)
        return code;
    CLI::App app{"Memory of virtual machines: provide it, share it, protect it, fork it.", "guestmem"};
    app.set_version_flag("--version", std::string{"guestmem "} + GUESTMEM_VERSION);
    app.footer("Example: guestmem share list\nEach command explains itself: guestmem share serve --help");
    app.require_subcommand(1);
    app.failure_message([](const CLI::App*, const CLI::Error& problem) {
        return std::string{"guestmem: "} + problem.what() +
               "; --help behind the command says what is possible\n";
    });

    Action chosen;
    // The others would be described for nobody, and that takes as long as making a machine.
    const Row* const named = named_row({words, static_cast<std::size_t>(count)});
    const auto add_command = [&](CLI::App& group, const Row& row) {
        if (named != nullptr && named != &row) return;
        CLI::App* const command = group.add_subcommand(row.name, row.summary);
        command->callback([&chosen, action = row.describe(*command)] { chosen = action; });
    };
    for (const Row& row : table)
        if (std::string_view{row.group}.empty()) add_command(app, row);
    for (const Group& row_of_group : groups) {
        CLI::App* const group = app.add_subcommand(row_of_group.name, row_of_group.summary);
        group->require_subcommand(1);
        group->footer(std::string{"Example: "} + row_of_group.example);
        for (const Row& row : table) {
            if (std::string_view{row.group} == row_of_group.name) add_command(*group, row);
        }
    }
    try {
        app.parse(count, words);
    } catch (const CLI::ParseError& problem) {
        // CLI11 prints help to standard output and mistakes to standard error.
        return app.exit(problem) == 0 ? exit_ok : exit_usage;
    }
    return chosen();
}

}  // namespace
}  // namespace guestmem::cli

int main(int count, char** words) {
    if (!guestmem::open_standard_streams()) return guestmem::cli::exit_failed;
    try {
        return guestmem::cli::run(count, words);
    } catch (const std::exception& failure) {
        // Only the parser and memory exhaustion throw.
        std::fprintf(stderr, "guestmem: %s\n", failure.what());
        return guestmem::cli::exit_failed;
    }
}
