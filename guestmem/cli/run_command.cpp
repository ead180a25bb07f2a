// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/run_command.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "guestmem/cli/console.hpp"
#include "guestmem/cli/exit_codes.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/control/server.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/sys/event_loop.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/privileges.hpp"
#include "guestmem/sys/program_pages.hpp"
#include "guestmem/vmm/board_plan.hpp"
#include "guestmem/vmm/config/explain.hpp"
#include "guestmem/vmm/config/schema.hpp"
#include "guestmem/vmm/machine.hpp"
#include "guestmem/vmm/sandbox.hpp"
#include "guestmem/vmm/vm_control.hpp"

namespace guestmem::cli {
namespace {

struct RunOptions {
    std::vector<std::string> words;
    std::string share_control;
    std::string control;  ///< the machine's own; empty: by its name
    std::string user;     ///< whom the machine runs as; empty: who started it
    bool has_no_sandbox = false;
    bool is_memory_dumped = false;
    bool is_explained = false;
    bool json = false;
};

constexpr int flush_ms = 1000;
/// By then the guest has begun, and what made the machine is not needed any more.
constexpr std::uint64_t started_ms = 100;

/// `guestmem run FILE` is `guestmem run @FILE`.
std::vector<std::string> words_of(const RunOptions& options) {
    std::vector<std::string> words = options.words;
    if (!words.front().starts_with('@') && !vmm::is_any_word(words.front())) words.front().insert(0, 1, '@');
    return words;
}

int code_of(const vmm::MachineEnd& end) {
    using Kind = vmm::MachineEnd::Kind;
    switch (end.kind) {
        case Kind::power_off:
        case Kind::stopped: return exit_ok;
        case Kind::reset: return exit_guest_reset;
        case Kind::triple_fault: return exit_guest_gave_up;
        case Kind::exit_port: return end.code == 0 ? exit_ok : exit_guest_code + (end.code & 31);
        case Kind::failed: return exit_machine_failed;
    }
    return exit_machine_failed;
}

/// The socket that was named, or that of the host's service where it has one.
std::string control_of(const RunOptions& options) {
    if (!options.share_control.empty()) return options.share_control;
    const std::string usual = share::default_control_path();
    const auto facts = path_facts(usual);
    return facts && facts->exists ? usual : std::string{};
}

Result<vmm::ConfigRead> read_configuration(const RunOptions& options) {
    const std::vector<std::string> words = words_of(options);
    if (words.size() != 1 || !words.front().starts_with('@')) return vmm::read_words(words, &read_text_file);
    // Its mistakes need not say that a command line has named it.
    const std::string path = words.front().substr(1);
    return vmm::read_text(GM_TRY(read_text_file(path, vmm::max_source_bytes)), path, &read_text_file);
}

/// The machine while it runs, with its console, in one loop.
class Run {
public:
    static Result<vmm::MachineEnd> go(const vmm::BoardPlan& plan, const RunOptions& options) {
        EventLoop loop = GM_TRY(EventLoop::create());
        EventFd ended = GM_TRY(EventFd::create());
        Run run{std::move(loop), std::move(ended), options};
        return run.run(plan, options.control);
    }

private:
    Run(EventLoop loop, EventFd ended, const RunOptions& options)
        : loop_(std::move(loop)), ended_(std::move(ended)), options_(options) {}

    Result<vmm::MachineEnd> run(const vmm::BoardPlan& plan, const std::string& control_path) {
        console_ = GM_TRY(Console::create(loop_, FdView{0}, FdView{1}));
        warnings_ = GM_TRY(Console::create(loop_, FdView{}, FdView{2}));
        GM_TRY(warnings_->listen({}));
        GM_TRY(open_ports(plan));
        GM_TRY(block_signal(SIGPIPE));  // a console whose reader has gone is a write's error
        for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
            GM_TRY(block_signal(signal));
            signals_.push_back(GM_TRY(loop_.add_signal(signal, [this] { end({}); })));
        }
        const auto source =
            GM_TRY(loop_.add_io(ended_.view(), IoEvents::readable, [this](IoEvents) { loop_.stop(); }));
        auto machine = GM_TRY(vmm::Machine::create(plan, world()));
        auto control = std::make_unique<vmm::VmControl>(*machine, plan, [this] { end({}); });
        // Its socket goes last: who waits for that finds no guest any more.
        const auto server = GM_TRY(serve(*control, plan, control_path));
        const bool has_keys = !ports_.empty() && ports_.front().end == console_.get();
        const auto receive = [&](std::span<const std::byte> bytes) { return machine->receive(0, bytes); };
        GM_TRY(console_->listen(
            {.receive = has_keys ? std::function<std::size_t(std::span<const std::byte>)>{receive} : nullptr,
             .quit = [this] { end({}); },
             .toggle_pause =
                 [&] {
                     if (machine->is_paused()) {
                         machine->resume();
                     } else {
                         machine->pause();
                     }
                 }}));
        for (std::size_t port = 0; port < ports_.size(); ++port) {
            if (ports_[port].own == nullptr) continue;
            GM_TRY(ports_[port].own->listen(
                {.receive =
                     [&, port](std::span<const std::byte> bytes) { return machine->receive(port, bytes); },
                 .quit = {},
                 .toggle_pause = {}}));
        }
        machine->start();
        const auto after_start = GM_TRY(loop_.add_timer(started_ms, [] { give_back_program_pages(); }));
        GM_TRY(loop_.run());
        machine->pause();
        control.reset();
        machine.reset();
        console_->flush(flush_ms);
        warnings_->flush(flush_ms);
        for (const Port& port : ports_) {
            if (port.own != nullptr) port.own->flush(flush_ms);
        }
        if (console_->count_lost() != 0) {
            fmt::print(stderr, "guestmem: nobody read the console: {} bytes of it are lost\n",
                       console_->count_lost());
        }
        const std::lock_guard lock{mutex_};
        return end_.value_or(vmm::MachineEnd{});
    }

    /// A machine runs without the socket that nobody has named, too: where there is no folder for it, or another one of
    /// this name runs.
    Result<std::optional<control::Server>> serve(vmm::VmControl& control, const vmm::BoardPlan& plan,
                                                 const std::string& path) {
        auto server = make_server(control, plan, path);
        if (server) return std::optional{*std::move(server)};
        if (!path.empty()) return server.error();
        fmt::print(stderr,
                   "guestmem: 'guestmem vm' cannot reach this machine: {}; name a socket with --control\n",
                   server.error().message());
        return std::optional<control::Server>{};
    }

    Result<control::Server> make_server(vmm::VmControl& control, const vmm::BoardPlan& plan,
                                        const std::string& path) {
        control::ServerOptions options;
        options.socket.path = path;
        options.socket.mode = 0600;
        if (path.empty()) {
            options.socket.path = GM_TRY(vmm::vm_control_path(runtime_folder(), plan.config().system.value));
            GM_TRY(make_folder(runtime_folder()));
        }
        return control::Server::create(
            loop_, options, [&control](const PeerCredentials& caller, const control::Request& request) {
                return control.answer(caller, request);
            });
    }

    /// The first serial port is the terminal's unless it has a `hostdev`; others without one have nobody.
    Result<void> open_ports(const vmm::BoardPlan& plan) {
        for (const vmm::Vdev& vdev : plan.config().vdevs) {
            if (vdev.kind != vmm::VdevKind::ser8250) continue;
            Port port;
            if (!vdev.hostdev) {
                port.end = ports_.empty() ? console_.get() : nullptr;
            } else if (vdev.hostdev->value == ">-") {
                port.end = console_.get();
            } else {
                port.file = GM_TRY_CONTEXT(open_file(vdev.hostdev->value, OpenMode::read_write), "hostdev");
                port.own = GM_TRY(Console::create(loop_, port.file.view(), port.file.view()));
                port.end = port.own.get();
            }
            ports_.push_back(std::move(port));
        }
        return {};
    }

    vmm::MachineWorld world() {
        return {.send =
                    [this](std::size_t port, std::byte byte) {
                        if (port < ports_.size() && ports_[port].end != nullptr) ports_[port].end->send(byte);
                    },
                .has_room =
                    [this](std::size_t port) {
                        if (port < ports_.size() && ports_[port].end != nullptr) ports_[port].end->wake();
                    },
                .debug = [this](std::byte byte) { console_->send(byte); },
                .warn = [this](const std::string& text) { warnings_->send("guestmem: " + text + "\n"); },
                .ended = [this](vmm::MachineEnd how) { end(std::move(how)); },
                .share_control = control_of(options_),
                .sandbox = options_.has_no_sandbox ? nullptr : std::make_shared<const vmm::Sandbox>(),
                .dump = options_.is_memory_dumped ? vmm::MemoryDump::included : vmm::MemoryDump::left_out};
    }

    /// Any thread; the first one counts.
    void end(vmm::MachineEnd how) {
        const std::lock_guard lock{mutex_};
        if (!end_) end_ = std::move(how);
        static_cast<void>(ended_.ring());
    }

    EventLoop loop_;
    EventFd ended_;
    const RunOptions& options_;
    std::vector<EventSource> signals_;
    struct Port {
        Fd file;
        std::unique_ptr<Console> own;
        Console* end = nullptr;
    };
    std::unique_ptr<Console> console_;
    std::unique_ptr<Console> warnings_;  ///< standard error: the guest never waits for it, either
    std::vector<Port> ports_;
    std::mutex mutex_;
    std::optional<vmm::MachineEnd> end_;
};

int fail(const Error& error, int code) {
    report(error);
    return code;
}

void tell_what_is_off(const RunOptions& options) {
    if (options.has_no_sandbox) {
        fmt::print(
            stderr,
            "guestmem: WARNING: --no-sandbox: no filter of system calls, no fence around files, and all "
            "rights of user {} stay: whoever breaks out of the guest has them\n",
            own_user());
    } else if (const auto obstacle = vmm::Sandbox::obstacle()) {
        fmt::print(stderr,
                   "guestmem: no filter of system calls and no fence around files in this build: {}\n",
                   *obstacle);
    }
    if (options.is_memory_dumped)
        fmt::print(stderr,
                   "guestmem: WARNING: --dump-guest-memory: core files have the guest's memory in them\n");
}

int run_machine(const RunOptions& options) {
    auto read = read_configuration(options);
    if (!read) return fail(read.error(), exit_configuration);
    const bool is_dry = read->config.dryrun && read->config.dryrun->value;
    if (options.json) {
        print(vmm::explain_json(read->config, read->sources));
        return exit_ok;
    }
    const auto plan = vmm::plan_board(*std::move(read));
    if (!plan) return fail(plan.error(), exit_configuration);
    if (options.is_explained || is_dry) {
        print(vmm::explain_board(*plan));
        return exit_ok;
    }
    if (const auto guard = install_fault_guard(); !guard) return fail(guard.error(), exit_not_started);
    tell_what_is_off(options);
    // Descriptors on their way through sockets count for the whole user; without root's rights this is their limit.
    raise_descriptor_limit();
    if (const auto taken = take_user(options.user); !taken) return fail(taken.error(), exit_not_started);
    const auto end = Run::go(*plan, options);
    if (!end) return fail(end.error(), exit_not_started);
    if (end->kind == vmm::MachineEnd::Kind::failed) fmt::print(stderr, "guestmem: {}\n", end->message);
    return code_of(*end);
}

}  // namespace

Action describe_run(CLI::App& app) {
    auto options = std::make_shared<RunOptions>();
    app.footer(
        "Examples:\n"
        "  guestmem run cluster.qvmconf\n"
        "  guestmem run --explain cluster.qvmconf\n"
        "  guestmem run @cluster.qvmconf ram 64M\n"
        "On a terminal Ctrl-A x ends the machine, Ctrl-A p pauses it and lets it go on.\n"
        "Exit codes: 0 the guest switched itself off or was stopped, 3 it asked for a reset, 7 its processor gave up,\n"
        "32 to 63 what it wrote to the exit port, 64 it could not be started, 65 the configuration is wrong,\n"
        "96 it could not go on, 2 wrong words.");
    app.add_option("WORDS", options->words,
                   "A .qvmconf file, or its words: @FILE and options with their values")
        ->required();
    app.add_option(
        "--share-control", options->share_control,
        "The share service's control socket; default: that of the host's service where there is one, else "
        "the machine serves itself");
    app.add_option(
        "--control", options->control,
        "The machine's own control socket, for 'guestmem vm' (default: vm-NAME.control in /run/guestmem or "
        "$XDG_RUNTIME_DIR/guestmem)");
    auto* const no_sandbox =
        app.add_flag("--no-sandbox", options->has_no_sandbox, "Give up no right before the guest runs");
    app.add_option("--user", options->user, "Become this user before the machine is made; only root can")
        ->excludes(no_sandbox);
    app.add_flag("--dump-guest-memory", options->is_memory_dumped,
                 "Core files have the guest's memory in them");
    app.add_flag("--explain", options->is_explained, "Print what would be made, and make nothing");
    app.add_flag("--json", options->json, "Print the configuration as JSON, and make nothing");
    return [options] { return run_machine(*options); };
}

}  // namespace guestmem::cli
