// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/share_commands.hpp"

#include <CLI/CLI.hpp>
#include <memory>

#include "guestmem/cli/share_options.hpp"

namespace guestmem::cli {
namespace {

/// The options live as long as the action that reads them.
template <typename Options, typename Run>
Action action(const std::shared_ptr<Options>& options, Run run) {
    return [options, run] { return run(*options); };
}

void add_tool_options(CLI::App& app, ToolOptions& options) {
    app.add_option("--control", options.control,
                   "Control socket of the service (else $GUESTMEM_SHARE_CONTROL, else share.control in "
                   "/run/guestmem or $XDG_RUNTIME_DIR/guestmem)");
    app.add_flag("--json", options.json, "Print JSON for programs");
}

/// CLI11 reads "-1" into an unsigned number as a huge one.
CLI::Validator is_number() {
    return CLI::Validator{[](std::string& word) {
                              const bool is_digits =
                                  !word.empty() && word.find_first_not_of("0123456789") == std::string::npos;
                              return is_digits ? std::string{} : "'" + word + "' is not a number from 0 up";
                          },
                          "NUMBER"};
}

CLI::Validator is_peer() {
    return CLI::Validator{[](std::string& word) { return word == "all" ? std::string{} : is_number()(word); },
                          "ID|all"};
}

CLI::Option* add_share(CLI::App& app, std::string& share) {
    return app.add_option("NAME", share, "Name of the share")->required();
}

void add_ready_options(CLI::App& app, RingOptions& options) {
    auto* wait =
        app.add_flag("--wait-ready", options.has_to_wait,
                     "First wait until somebody holds the peer's slot, and listens where --ready-word says");
    app.add_option("--ready-word", options.ready_word,
                   "Offset of a 32-bit word in the share that the peer sets to 1 when it listens")
        ->check(is_number())
        ->needs(wait);
    app.add_option("--timeout", options.timeout_seconds, "Seconds to wait for it (30)")->needs(wait);
}

}  // namespace

Action describe_share_serve(CLI::App& app) {
    auto options = std::make_shared<ServeOptions>();
    app.footer(
        "Examples:\n"
        "  guestmem share serve --config /etc/guestmem/share.toml\n"
        "  guestmem share serve --quick mailbox --size 4M --vectors 2 --slots 4 --socket /run/mailbox.sock\n"
        "  guestmem share serve -F -S /tmp/ivshmem_socket -n 2 -l 4096\n"
        "With --quick, SOCKET gives the lowest free slot and SOCKET.0 to SOCKET.N-1 a fixed one; the control socket\n"
        "is SOCKET.control. Exit codes: 0 ended by SIGTERM or SIGINT, 1 the system refused, 2 wrong words or file.");
    auto* config = app.add_option("--config", options->config, "Serve what this TOML file says");
    app.add_flag("--check", options->only_check, "Read the configuration, say what is wrong, serve nothing")
        ->needs(config);
    auto* quick = app.add_option("--quick", options->quick, "Serve one share of this name, without a file");
    auto* size =
        app.add_option("--size", options->size, "Size of the share: whole pages, as in 4M")->needs(quick);
    auto* vectors = app.add_option("--vectors", options->vectors, "Doorbell vectors of each slot")
                        ->check(is_number())
                        ->needs(quick);
    app.add_option("--slots", options->slots, "Slots: how many peers may be there at a time (64)")
        ->check(is_number())
        ->excludes(config);
    auto* socket = app.add_option("--socket", options->socket, "Socket for ivshmem clients")->needs(quick);
    app.add_option("--socket-mode", options->socket_mode, "Mode of the sockets, octal (0600)")
        ->excludes(config);
    app.add_option("--ids", options->ids,
                   "stable (an id is a slot) or classic (order of arrival, with notices)")
        ->check(CLI::IsMember({"stable", "classic"}))
        ->excludes(config);
    quick->needs(size)->needs(socket)->excludes(config);
    app.add_option("--control", options->control, "Control socket, instead of the configured one");
    app.add_option(
           "--keeper", options->keeper,
           "Who holds everything while the service is killed, restarted or upgraded: a process of its own at "
           "this socket (beside the control socket where none is named), or 'manager': the service manager, "
           "which is taken by itself where it offers to")
        ->expected(0, 1);
    app.add_flag(
        "--upgrade", options->is_upgrade,
        "Take the place of the service that runs, with the same --keeper: its clients notice nothing");
    app.add_flag("--no-sandbox", options->has_no_sandbox, "Do without the filter of system calls");
    app.add_flag("--keep", options->is_kept, "Keep the memory's bytes when the last peer leaves")
        ->excludes(config);

    const std::string stock = "As the stock ivshmem-server";
    app.add_option("-S", options->stock_socket, "Socket path (/tmp/ivshmem_socket)")
        ->group(stock)
        ->excludes(quick, config);
    app.add_option("-M", options->stock_name, "Names the share; no file in /dev/shm is made")
        ->group(stock)
        ->excludes(quick, config);
    app.add_option("-m", options->stock_folder, "Huge pages when this folder is a hugetlbfs; no file is made")
        ->group(stock)
        ->excludes(quick, config);
    app.add_option("-l", options->stock_size, "Size, rounded up to a power of two (4M)")
        ->group(stock)
        ->excludes(quick, config);
    app.add_option("-n", options->stock_vectors, "Vectors (1)")
        ->check(is_number())
        ->group(stock)
        ->excludes(quick, config, vectors);
    app.add_option("-p", options->pid_file,
                   "Write the process number here (/var/run/ivshmem-server.pid in the background)")
        ->group(stock);
    app.add_flag("-F", options->foreground,
                 "Stay in the foreground; without it the stock words go to the background")
        ->group(stock);
    app.add_flag("-v", options->verbose, "Say more on standard error");
    return action(options, &share_serve);
}

Action describe_share_attach_line(CLI::App& app) {
    auto options = std::make_shared<AttachLineOptions>();
    app.footer(
        "Examples:\n"
        "  guestmem share attach-line mailbox --vm linux --qemu\n"
        "  guestmem share attach-line mailbox --vm linux --libvirt --config share.toml\n"
        "One line or element for each socket that the VM has for this share. QEMU's device cannot have memory\n"
        "read-only. Exit codes: 0 printed, 1 this VM cannot have it so, 2 wrong words or configuration.");
    add_share(app, options->share);
    app.add_option("--vm", options->vm, "The VM, by its name in the file")->required();
    auto* qemu = app.add_flag("--qemu", options->is_qemu, "Words for QEMU's command line");
    app.add_flag("--libvirt", options->is_libvirt, "An element for the devices of a libvirt domain")
        ->excludes(qemu);
    app.add_option("--config", options->config, "The service's TOML file (/etc/guestmem/share.toml)");
    return action(options, &share_attach_line);
}

Action describe_share_check(CLI::App& app) {
    auto options = std::make_shared<CheckOptions>();
    app.footer(
        "Examples:\n"
        "  guestmem share check --config /etc/guestmem/share.toml\n"
        "  guestmem share check --config /etc/guestmem/share.toml --vm linux --share mailbox --create\n"
        "Without --vm it finds rules that never match, VMs that reach everything, shares and doors that nobody can\n"
        "use, and read-only rights that do not hold. With --vm it says by which line a VM may reach a share.\n"
        "Exit codes: 0 nothing found or allowed, 1 findings or refused, 2 wrong words or configuration.");
    app.add_option("--config", options->config, "The service's TOML file")->required();
    auto* vm = app.add_option("--vm", options->vm, "Name of a VM in the file");
    auto* share = app.add_option("--share", options->share, "Name of a share, in the file or not")->needs(vm);
    vm->needs(share);
    app.add_flag("--create", options->is_create, "Whether the VM may create the share, too")->needs(vm);
    app.add_flag("--json", options->json, "Print JSON for programs");
    return action(options, &share_check);
}

Action describe_share_reload(CLI::App& app) {
    auto options = std::make_shared<ToolOptions>();
    app.footer(
        "Example: guestmem share reload\n"
        "All of the new configuration or nothing of it; what has changed is printed, a line each. Who loses a right\n"
        "keeps what it has mapped until it leaves, and gets nothing more.");
    add_tool_options(app, *options);
    return action(options, &share_reload);
}

Action describe_share_retire(CLI::App& app) {
    auto options = std::make_shared<ToolOptions>();
    app.footer(
        "Example: guestmem share retire && guestmem share serve --config FILE --keeper\n"
        "The service needs a keeper. Its clients notice nothing; newcomers wait until the next instance is there.");
    add_tool_options(app, *options);
    return action(options, &share_retire);
}

Action describe_share_list(CLI::App& app) {
    auto options = std::make_shared<ToolOptions>();
    app.footer("Example: guestmem share list --json");
    add_tool_options(app, *options);
    return action(options, &share_list);
}

Action describe_share_stat(CLI::App& app) {
    auto options = std::make_shared<StatOptions>();
    app.footer(
        "Example: guestmem share stat mailbox\n"
        "Pending kicks are read from the kernel without taking them from their holder.");
    add_share(app, options->share);
    add_tool_options(app, *options);
    return action(options, &share_stat);
}

Action describe_share_write(CLI::App& app) {
    auto options = std::make_shared<WriteOptions>();
    app.footer(
        "Examples:\n"
        "  guestmem share write mailbox --message 'hello world'\n"
        "  guestmem share write mailbox --file table.bin --offset 4096\n"
        "A message is stored with a NUL behind it. The size of the memory never changes.");
    add_share(app, options->share);
    auto* message = app.add_option("--message", options->message, "Text to store, with a NUL behind it");
    app.add_option("--file", options->file, "File whose bytes to store")->excludes(message);
    app.add_option("--offset", options->offset, "Where in the share, in bytes (0)")->check(is_number());
    add_tool_options(app, *options);
    return action(options, &share_write);
}

Action describe_share_read(CLI::App& app) {
    auto options = std::make_shared<ReadOptions>();
    app.footer(
        "Examples:\n"
        "  guestmem share read mailbox\n"
        "  guestmem share read mailbox --offset 4096 --length 64 --raw | xxd");
    add_share(app, options->share);
    app.add_option("--offset", options->offset, "Where in the share, in bytes (0)")->check(is_number());
    app.add_option("--length", options->length, "How many bytes; without it, up to the first NUL")
        ->check(is_number());
    app.add_flag("--raw", options->raw,
                 "The bytes as they are; else what is not printable is shown as \\xNN");
    add_tool_options(app, *options);
    return action(options, &share_read);
}

Action describe_share_ring(CLI::App& app) {
    auto options = std::make_shared<RingOptions>();
    app.footer(
        "Example: guestmem share ring mailbox 1 0\nA kick for a slot that nobody holds waits for its next holder.");
    add_share(app, options->share);
    app.add_option("PEER", options->peer, "Id of the peer, or 'all' who are there")
        ->check(is_peer())
        ->required();
    app.add_option("VECTOR", options->vector, "Doorbell vector, from 0")->check(is_number())->required();
    add_ready_options(app, *options);
    add_tool_options(app, *options);
    return action(options, &share_ring);
}

Action describe_share_send(CLI::App& app) {
    auto options = std::make_shared<SendOptions>();
    app.footer(
        "Example: guestmem share send mailbox 0 0 --message 'hello world'\n"
        "Stores the text as 'write' does, then rings as 'ring' does.");
    add_share(app, options->share);
    app.add_option("PEER", options->peer, "Id of the peer, or 'all' who are there")
        ->check(is_peer())
        ->required();
    app.add_option("VECTOR", options->vector, "Doorbell vector, from 0")->check(is_number())->required();
    app.add_option("--message", options->message, "Text to store, with a NUL behind it")->required();
    app.add_option("--offset", options->offset, "Where in the share, in bytes (0)")->check(is_number());
    add_ready_options(app, *options);
    add_tool_options(app, *options);
    return action(options, &share_send);
}

Action describe_share_wait(CLI::App& app) {
    auto options = std::make_shared<WaitOptions>();
    app.footer(
        "Example: guestmem share wait mailbox 0 --timeout 10\n"
        "Takes the highest free slot, says its id on standard error, and waits for a kick.\n"
        "Exit codes: 0 kicked, 1 failed, 3 nothing came in time.");
    add_share(app, options->share);
    app.add_option("VECTOR", options->vector, "Doorbell vector, from 0")->check(is_number())->required();
    app.add_option("--timeout", options->timeout_seconds, "Seconds to wait (for ever)")
        ->check(CLI::Range(0.0, 1'000'000.0));
    add_tool_options(app, *options);
    return action(options, &share_wait);
}

Action describe_share_client(CLI::App& app) {
    auto options = std::make_shared<ClientOptions>();
    app.footer(
        "Examples:\n"
        "  guestmem share client mailbox\n"
        "  guestmem share client -S /tmp/ivshmem_socket\n"
        "Commands: help, dump, int PEER VECTOR, int PEER all, int all; a newline or ';' ends each.");
    auto* share = app.add_option("NAME", options->share, "Name of the share, through the control socket");
    app.add_option("-S", options->socket, "Socket of any ivshmem server instead")->excludes(share);
    app.add_flag("-v", options->verbose, "Say what the server tells");
    app.add_option("--control", options->control, "Control socket of the service");
    return action(options, &share_client);
}

}  // namespace guestmem::cli
