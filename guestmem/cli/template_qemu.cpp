// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/template_qemu.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <utility>

#include "guestmem/cli/qemu_machine.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/cli/template_store.hpp"
#include "guestmem/mem/template/maker.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/mem/template/template_files.hpp"
#include "guestmem/sys/event_loop.hpp"
#include "guestmem/sys/file_lock.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/folder.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/owned_file.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/process.hpp"

namespace guestmem::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::array<int, 3> end_signals{SIGINT, SIGTERM, SIGHUP};
constexpr int start_timeout_ms = 20'000;
constexpr int help_timeout_ms = 10'000;
constexpr std::size_t max_help_bytes = std::size_t{64} << 10;

constexpr const char* layout_key = "layout";
constexpr const char* layout_value = "qemu-ramblock";

/// From here on these signals wait: a guest that is stopped goes on first.
Result<void> block_end_signals() {
    for (const int signal : end_signals) GM_TRY(block_signal(signal));
    return {};
}

/// A value inside of a QEMU option, where a comma separates.
std::string escaped(std::string_view value) {
    std::string text;
    for (const char c : value) text += c == ',' ? ",," : std::string{c};
    return text;
}

std::string with_value(std::string text, std::string_view placeholder, std::string_view value) {
    for (std::size_t at = 0; (at = text.find(placeholder, at)) != std::string::npos; at += value.size())
        text.replace(at, placeholder.size(), value);
    return text;
}

/// 8-4-4-4-12 digits, as vmgenid wants them.
std::string to_uuid(const std::string& generation) {
    return fmt::format("{}-{}-{}-{}-{}", generation.substr(0, 8), generation.substr(8, 4),
                       generation.substr(12, 4), generation.substr(16, 4), generation.substr(20));
}

/// A folder for sockets that only this user enters, removed with all in it.
class PrivateFolder {
public:
    static Result<PrivateFolder> create() {
        GM_TRY(make_folder(runtime_folder()));
        std::string path = fmt::format("{}/fork-{}", runtime_folder(), GM_TRY(random_hex(4)));
        GM_TRY(make_folder(path, 0700));
        return PrivateFolder{std::move(path)};
    }
    PrivateFolder(PrivateFolder&& other) noexcept : path_(std::exchange(other.path_, {})) {}
    PrivateFolder& operator=(PrivateFolder&&) = delete;
    ~PrivateFolder() {
        if (!path_.empty()) static_cast<void>(remove_tree(path_));
    }
    [[nodiscard]] const std::string& path() const { return path_; }

private:
    explicit PrivateFolder(std::string path) : path_(std::move(path)) {}
    std::string path_;
};

/// Whether memory-backend-file of this QEMU can be RAM of a file that is only read (8.2 and later).
Result<bool> knows_rom(const std::string& program) {
    auto [ours, its] = GM_TRY(UnixStream::pair());
    ProcessOptions options;
    options.arguments = {program, "-object", "memory-backend-file,help"};
    options.output = its.view();
    ChildProcess child = GM_TRY(ChildProcess::start(options));
    its = UnixStream{};
    std::string help;
    std::array<char, 4096> buffer{};
    while (GM_TRY(ours.wait_readable(help_timeout_ms))) {
        const auto received = GM_TRY(ours.receive(std::as_writable_bytes(std::span{buffer})));
        if (!received) continue;
        if (received->count_bytes == 0 || help.size() > max_help_bytes) break;
        help.append(buffer.data(), received->count_bytes);
    }
    if (!help.contains("mem-path="))
        return Error{Errc::unsupported,
                     fmt::format("'{} -object memory-backend-file,help' does not answer as QEMU does",
                                 to_printable(program))};
    return help.contains(" rom=");
}

/// One VM.
struct QemuFork {
    Fork memory;  ///< its generation, and the template's lease
    ChildProcess process;
    std::string socket;
    std::chrono::nanoseconds time{};
    EventSource end = {};
};

class QemuForks {
public:
    static Result<std::unique_ptr<QemuForks>> create(const QemuForkOptions& options);

    Result<void> start_all();
    void print_all() const;
    /// Whether all ended well.
    Result<bool> wait();

private:
    QemuForks(const QemuForkOptions& options, EventLoop loop, PrivateFolder folder)
        : options_(options), loop_(std::move(loop)), folder_(std::move(folder)) {}
    Result<void> start_one(std::uint64_t index);
    Result<std::unique_ptr<QemuMachine>> connect(QemuFork& fork);
    [[nodiscard]] std::string image_path() const;
    std::vector<std::string> command_of(std::uint64_t index, const std::string& generation,
                                        const std::string& socket) const;
    void take_signal(int signal);
    void take_end(QemuFork& fork);

    const QemuForkOptions& options_;
    EventLoop loop_;
    PrivateFolder folder_;
    std::shared_ptr<const Template> base_;  ///< what was asked for; its lease is in its folder
    Template::Leases leases_;
    std::shared_ptr<const Template> template_;  ///< what is mapped: that, or a copy in memory
    std::optional<FileLock> lock_;              ///< that the children inherit
    std::vector<std::byte> state_;
    std::vector<EventSource> signals_;
    std::vector<std::unique_ptr<QemuFork>> forks_;
    std::size_t count_ended_ = 0;
    int count_signals_ = 0;
    bool are_good_ = true;
    bool has_rom_ = false;
};

Result<std::unique_ptr<QemuForks>> QemuForks::create(const QemuForkOptions& options) {
    auto opened = GM_TRY(Template::open(options.folder));
    const Manifest& manifest = opened->manifest();
    const auto layout = manifest.provenance.find(layout_key);
    if (layout == manifest.provenance.end() || layout->second != layout_value || manifest.regions.size() != 1)
        return Error{Errc::invalid_argument,
                     fmt::format("{}: it was not made by `guestmem template make --qemu`",
                                 to_printable(options.folder))};
    const auto base = opened;
    auto leases = GM_TRY(base->hold());
    // What cannot be mapped as one file is put together in memory, once for all forks.
    if (manifest.parent || manifest.encoding != ImageEncoding::raw) opened = GM_TRY(base->load());
    GM_TRY(block_end_signals());
    auto loop = GM_TRY(EventLoop::create());
    auto folder = GM_TRY(PrivateFolder::create());
    std::unique_ptr<QemuForks> forks{new QemuForks{options, std::move(loop), std::move(folder)}};
    forks->state_ = GM_TRY(opened->read_state());
    forks->base_ = base;
    forks->leases_ = std::move(leases);
    forks->template_ = std::move(opened);
    for (const int signal : end_signals) {
        QemuForks* const self = forks.get();
        auto source = GM_TRY(forks->loop_.add_signal(signal, [self, signal] { self->take_signal(signal); }));
        forks->signals_.push_back(std::move(source));
    }
    forks->has_rom_ = GM_TRY(knows_rom(options.command[0]));
    if (!forks->has_rom_ && own_user() != 0)
        return Error{
            Errc::permission_denied,
            fmt::format("{}: it opens the image for writing, which nobody but root may; QEMU 8.2 and later "
                        "need not (rom=off)",
                        to_printable(options.command[0]))};
    return forks;
}

std::vector<std::string> QemuForks::command_of(std::uint64_t index, const std::string& generation,
                                               const std::string& socket) const {
    std::vector<std::string> command;
    for (const std::string& word : options_.command)
        command.push_back(with_value(with_value(word, "{index}", fmt::format("{}", index)), "{generation}",
                                     to_uuid(generation)));
    const ImageRegion& ram = template_->manifest().regions[0];
    command.insert(
        command.end(),
        {"-object",
         fmt::format("memory-backend-file,id={},size={},mem-path={},share=off{}", escaped(ram.name),
                     ram.size_bytes, escaped(image_path()), has_rom_ ? ",readonly=on,rom=off" : ""),
         "-qmp", fmt::format("unix:{},server=on,wait=off", escaped(socket)), "-incoming", "defer"});
    return command;
}

std::string QemuForks::image_path() const {
    // A loaded one has no name but that of its descriptor; this process waits for all of its forks.
    if (template_->is_loaded())
        return fmt::format("/proc/{}/fd/{}", own_process(), template_->image().number());
    return fmt::format("{}/{}", template_->folder(), template_image_file);
}

Result<std::unique_ptr<QemuMachine>> QemuForks::connect(QemuFork& fork) {
    const auto deadline = Clock::now() + std::chrono::milliseconds{start_timeout_ms};
    for (;;) {
        auto connected = QemuMachine::connect(fork.socket);
        if (connected) return connected;
        const auto end = GM_TRY(fork.process.try_wait());
        if (end)
            return Error{Errc::unavailable,
                         fmt::format("QEMU {} before its guest was there; above it says why", to_text(*end))};
        if (Clock::now() > deadline) return connected;
        // It takes some 100 ms until QEMU listens.
        static_cast<void>(GM_TRY(poll_readable(fork.process.ended(), 2)));
    }
}

Result<void> QemuForks::start_one(std::uint64_t index) {
    const auto begin = Clock::now();
    Fork memory = GM_TRY(template_->fork());
    if (!lock_) {
        const Fd folder = GM_TRY(open_folder(template_->folder()));
        Fd manifest = GM_TRY(open_in(folder, template_manifest_file));
        lock_ = GM_TRY(FileLock::try_shared(std::move(manifest)));
        if (!lock_) return Error{Errc::busy, "it is being removed"};
    }
    std::string socket = fmt::format("{}/{}.qmp", folder_.path(), index);
    ProcessOptions process;
    process.arguments = command_of(index, memory.generation, socket);
    process.inherited = {lock_->file().view()};
    // Standard output is for the table; what QEMU prints goes where its errors go.
    process.output = FdView{2};
    ChildProcess child = GM_TRY(ChildProcess::start(process));
    forks_.push_back(std::make_unique<QemuFork>(
        QemuFork{.memory = std::move(memory), .process = std::move(child), .socket = std::move(socket)}));
    QemuFork& fork = *forks_.back();
    const auto machine = GM_TRY(connect(fork));
    if (auto resumed = machine->resume(state_); !resumed) {
        const bool has_ended = GM_TRY(poll_readable(fork.process.ended(), 100));
        if (!has_ended) return std::move(resumed).error();
        return Error{Errc::unavailable,
                     "QEMU ended while it loaded the state: machine, -m and devices have to be those of the "
                     "template's; above it says why"};
    }
    fork.time = Clock::now() - begin;
    const auto noted =
        base_->note_fork({.generation = fork.memory.generation,
                          .pid = fork.process.pid(),
                          .first_instruction_ns = static_cast<std::uint64_t>(fork.time.count())});
    // The fork runs all the same; `show --live` does not know it.
    if (!noted) report(noted.error());
    fork.end = GM_TRY(
        loop_.add_io(fork.process.ended(), IoEvents::readable, [this, &fork](IoEvents) { take_end(fork); }));
    return {};
}

Result<void> QemuForks::start_all() {
    forks_.reserve(options_.count);
    for (std::uint64_t i = 0; i < options_.count; ++i) {
        GM_TRY_CONTEXT(start_one(i), fmt::format("fork {} of {}", i, to_printable(options_.folder)));
        GM_TRY(loop_.run_once(0));
        if (count_signals_ > 0) return Error{Errc::unavailable, "a signal came; all forks are ended"};
    }
    return {};
}

void QemuForks::print_all() const {
    if (!options_.json) print(fmt::format("{:>8}  {:<36}  {:>8}  {}\n", "PID", "GENERATION", "MS", "QMP"));
    for (const auto& fork : forks_) {
        const double ms = std::chrono::duration<double, std::milli>(fork->time).count();
        const std::string generation = to_uuid(fork->memory.generation);
        if (options_.json)
            print(nlohmann::json{{"pid", fork->process.pid()},
                                 {"generation", generation},
                                 {"milliseconds", ms},
                                 {"qmp", fork->socket}}
                      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) +
                  "\n");
        else
            print(fmt::format("{:>8}  {:<36}  {:>8.1f}  {}\n", fork->process.pid(), generation, ms,
                              fork->socket));
    }
}

void QemuForks::take_signal(int signal) {
    ++count_signals_;
    for (const auto& fork : forks_)
        static_cast<void>(fork->process.send_signal(count_signals_ == 1 ? signal : SIGKILL));
}

void QemuForks::take_end(QemuFork& fork) {
    const auto end = fork.process.try_wait();
    if (end && !*end) return;
    ++count_ended_;
    if (!end || !(*end)->is_good()) {
        are_good_ = false;
        fmt::print(stderr, "guestmem: process {} {}\n", fork.process.pid(),
                   end ? to_text(**end) : end.error().message());
    }
    fork.end = EventSource{};
}

Result<bool> QemuForks::wait() {
    while (count_ended_ < forks_.size()) GM_TRY(loop_.run_once(UINT64_C(60'000)));
    return are_good_;
}

}  // namespace

Result<Manifest> make_from_qemu(const std::string& socket, const QemuMakeOptions& options) {
    GM_TRY(block_end_signals());
    const auto qemu = GM_TRY(QemuMachine::connect(socket));
    const QemuFacts facts = GM_TRY(qemu->facts());
    const QemuMemory memory = GM_TRY(qemu->memory());
    const Fd file = GM_TRY(qemu->open_memory(memory));
    GM_TRY(make_store(options.folder));
    TemplateMaker maker = GM_TRY(begin_template(options.folder, options.parent, options.maker));

    const auto state = GM_TRY(qemu->freeze());
    const ImageRegion ram{.name = memory.id, .size_bytes = memory.size_bytes};
    GM_TRY(maker.add_file(ram, file, memory.offset_bytes));
    // What is left to do needs no guest that stands still.
    GM_TRY(qemu->thaw());

    GM_TRY(maker.set_state(state));
    maker.set_provenance(layout_key, layout_value);
    maker.set_provenance("qemu.version", facts.version);
    maker.set_provenance("qemu.machine", facts.machine);
    maker.set_provenance("qemu.memory", memory.id);
    maker.set_provenance("qemu.file", memory.path);
    for (const std::string& note : options.notes) {
        const std::size_t equals = note.find('=');
        maker.set_provenance(note.substr(0, equals),
                             equals == std::string::npos ? "" : note.substr(equals + 1));
    }
    return std::move(maker).commit();
}

std::string fault_of_command(const std::vector<std::string>& command) {
    if (command.empty()) return "behind -- comes QEMU's command line: -- qemu-system-x86_64 -machine ...";
    for (const std::string& word : command) {
        const std::string_view option = word.starts_with("--") ? std::string_view{word}.substr(1) : word;
        if (option == "-incoming" || option == "-daemonize")
            return fmt::format("QEMU's command line cannot have {}", option);
    }
    return {};
}

Result<bool> fork_into_qemus(const QemuForkOptions& options) {
    const auto forks = GM_TRY(QemuForks::create(options));
    GM_TRY(forks->start_all());
    forks->print_all();
    return forks->wait();
}

}  // namespace guestmem::cli
