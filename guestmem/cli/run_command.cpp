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
#include "guestmem/share/config.hpp"
#include "guestmem/sys/event_loop.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/vmm/board_plan.hpp"
#include "guestmem/vmm/config/explain.hpp"
#include "guestmem/vmm/config/schema.hpp"
#include "guestmem/vmm/machine.hpp"

namespace guestmem::cli {
namespace {

struct RunOptions {
    std::vector<std::string> words;
    std::string share_control;
    bool is_explained = false;
    bool json = false;
};

constexpr int flush_ms = 1000;

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

/// The machine while it runs, with its console, in one loop.
class Run {
public:
    static Result<vmm::MachineEnd> go(const vmm::BoardPlan& plan, std::string share_control) {
        EventLoop loop = GM_TRY(EventLoop::create());
        EventFd ended = GM_TRY(EventFd::create());
        Run run{std::move(loop), std::move(ended), std::move(share_control)};
        return run.run(plan);
    }

private:
    Run(EventLoop loop, EventFd ended, std::string share_control)
        : loop_(std::move(loop)), ended_(std::move(ended)), share_control_(std::move(share_control)) {}

    Result<vmm::MachineEnd> run(const vmm::BoardPlan& plan) {
        console_ = GM_TRY(Console::create(loop_, FdView{0}, FdView{1}));
        for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
            GM_TRY(block_signal(signal));
            signals_.push_back(GM_TRY(loop_.add_signal(signal, [this] { end({}); })));
        }
        const auto source =
            GM_TRY(loop_.add_io(ended_.view(), IoEvents::readable, [this](IoEvents) { loop_.stop(); }));
        auto machine = GM_TRY(vmm::Machine::create(plan, world()));
        GM_TRY(console_->listen(
            {.receive = [&](std::span<const std::byte> bytes) { return machine->receive(0, bytes); },
             .quit = [this] { end({}); },
             .toggle_pause =
                 [&] {
                     if (machine->is_paused()) {
                         machine->resume();
                     } else {
                         machine->pause();
                     }
                 }}));
        machine->start();
        GM_TRY(loop_.run());
        machine.reset();
        console_->flush(flush_ms);
        if (console_->count_lost() != 0) {
            fmt::print(stderr, "guestmem: nobody read the console: {} bytes of it are lost\n",
                       console_->count_lost());
        }
        const std::lock_guard lock{mutex_};
        return end_.value_or(vmm::MachineEnd{});
    }

    vmm::MachineWorld world() {
        return {.send =
                    [this](std::size_t port, std::byte byte) {
                        if (port == 0) console_->send(byte);
                    },
                .has_room =
                    [this](std::size_t port) {
                        if (port == 0) console_->wake();
                    },
                .debug = [this](std::byte byte) { console_->send(byte); },
                .warn = [](const std::string& text) { fmt::print(stderr, "guestmem: {}\n", text); },
                .ended = [this](vmm::MachineEnd how) { end(std::move(how)); },
                .share_control = share_control_};
    }

    /// Any thread; the first one counts.
    void end(vmm::MachineEnd how) {
        const std::lock_guard lock{mutex_};
        if (!end_) end_ = std::move(how);
        static_cast<void>(ended_.ring());
    }

    EventLoop loop_;
    EventFd ended_;
    std::string share_control_;
    std::vector<EventSource> signals_;
    std::unique_ptr<Console> console_;
    std::mutex mutex_;
    std::optional<vmm::MachineEnd> end_;
};

int fail(const Error& error, int code) {
    report(error);
    return code;
}

/// The socket that was named, or that of the host's service where it has one.
std::string control_of(const RunOptions& options) {
    if (!options.share_control.empty()) return options.share_control;
    const std::string usual = share::default_control_path();
    const auto facts = path_facts(usual);
    return facts && facts->exists ? usual : std::string{};
}

int run_machine(const RunOptions& options) {
    auto read = vmm::read_words(words_of(options), &read_text_file);
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
    const auto end = Run::go(*plan, control_of(options));
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
    app.add_flag("--explain", options->is_explained, "Print what would be made, and make nothing");
    app.add_flag("--json", options->json, "Print the configuration as JSON, and make nothing");
    return [options] { return run_machine(*options); };
}

}  // namespace guestmem::cli
