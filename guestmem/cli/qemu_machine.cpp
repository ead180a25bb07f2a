// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/qemu_machine.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "guestmem/cli/report.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/process_memory.hpp"

namespace guestmem::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* capability = "x-ignore-shared";
constexpr const char* state_name = "guestmem-state";
constexpr const char* state_uri = "fd:guestmem-state";
/// Between two looks at a migration: answers of 1 KiB each stay far below max_qmp_bytes.
constexpr std::chrono::milliseconds look_again{10};

constexpr const char* how_to_start =
    "start QEMU with -object memory-backend-file,id=ram0,size=SIZE,mem-path=FILE,share=on "
    "-machine TYPE,memory-backend=ram0 and no other memory backend";

Error unsuitable(std::string_view what) {
    return Error{Errc::unsupported, fmt::format("QEMU: {}; {}", what, how_to_start)};
}

std::string text_in(const nlohmann::json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}
std::uint64_t number_in(const nlohmann::json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_number_unsigned() ? found->get<std::uint64_t>() : 0;
}
bool is_true_in(const nlohmann::json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_boolean() && found->get<bool>();
}

/// Writes the state from a thread of its own: QEMU reads it when it likes, or never.
class Feeder {
public:
    Feeder(const UnixStream& stream, std::span<const std::byte> bytes)
        : stream_(stream), thread_([&stream, bytes] { feed(stream, bytes); }) {}
    Feeder(const Feeder&) = delete;
    Feeder& operator=(const Feeder&) = delete;
    ~Feeder() {
        stream_.shut_down();  // wakes a send that waits
        thread_.join();
    }

private:
    static void feed(const UnixStream& stream, std::span<const std::byte> bytes) {
        while (!bytes.empty()) {
            const auto sent = stream.send(bytes);
            // QEMU says by QMP what was wrong.
            if (!sent || sent->status != SendStatus::sent) return;
            bytes = bytes.subspan(sent->count_bytes);
        }
    }

    const UnixStream& stream_;
    std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<QemuMachine>> QemuMachine::connect(const std::string& path) {
    const std::string shown = to_printable(path);
    UnixStream stream = GM_TRY_CONTEXT(connect_soon(path), shown);
    GM_TRY(stream.set_nonblocking());
    std::unique_ptr<QemuMachine> machine{new QemuMachine{std::move(stream)}};
    machine->qmp_.set_time(greeting_timeout_ms);
    if (!machine->qmp_.take_greeting())
        return Error{Errc::unavailable,
                     fmt::format("{}: nobody greets as QEMU does; it has to be the socket of -qmp "
                                 "unix:PATH,server=on,wait=off, without another client",
                                 shown)};
    GM_TRY_CONTEXT(machine->ask("qmp_capabilities"), shown);
    return machine;
}

QemuMachine::~QemuMachine() {
    // Best effort: who wants to know calls thaw().
    static_cast<void>(thaw());
}

Result<nlohmann::json> QemuMachine::ask(std::string_view command, const nlohmann::json& arguments) {
    qmp_.set_time(conversation_timeout_ms);
    return qmp_.ask(command, arguments);
}

Result<std::string> QemuMachine::ask_text(std::string_view command, const nlohmann::json& arguments) {
    const auto answer = GM_TRY(ask(command, arguments));
    if (!answer.is_string()) return qmp_broken(fmt::format("'{}' gave no text", command));
    return answer.get<std::string>();
}

Result<std::string> QemuMachine::run_state() {
    const auto answer = GM_TRY(ask("query-status"));
    if (!answer.is_object()) return qmp_broken("'query-status' gave no object");
    return text_in(answer, "status");
}

Result<QemuFacts> QemuMachine::facts() {
    QemuFacts facts;
    const auto version = GM_TRY(ask("query-version"));
    if (!version.is_object() || !version.contains("qemu") || !version["qemu"].is_object())
        return qmp_broken("'query-version' gave no version");
    const auto& numbers = version["qemu"];
    facts.version = fmt::format("{}.{}.{}", number_in(numbers, "major"), number_in(numbers, "minor"),
                                number_in(numbers, "micro"));
    facts.machine = GM_TRY(ask_text("qom-get", {{"path", "/machine"}, {"property", "type"}}));
    constexpr std::string_view suffix = "-machine";
    if (facts.machine.ends_with(suffix)) facts.machine.resize(facts.machine.size() - suffix.size());
    const std::string state = GM_TRY(run_state());
    facts.is_running = state == "running";
    if (!facts.is_running && state != "paused")
        return Error{
            Errc::unsupported,
            fmt::format("QEMU: the guest is in state '{}': one that is running or paused can be frozen",
                        to_printable(state))};
    return facts;
}

Result<QemuMemory> QemuMachine::memory() {
    const auto objects = GM_TRY(ask("qom-list", {{"path", "/objects"}}));
    if (!objects.is_array() || objects.size() > max_qemu_objects)
        return qmp_broken("'qom-list' gave no list of objects, or too many");
    QemuMemory memory;
    std::string type;
    for (const auto& object : objects) {
        if (!object.is_object()) return qmp_broken("'qom-list' gave no list of objects");
        const std::string kind = text_in(object, "type");
        if (!kind.starts_with("child<memory-backend-")) continue;
        if (!type.empty()) return unsuitable("it has several memory backends");
        type = kind;
        memory.id = text_in(object, "name");
    }
    if (type.empty()) return unsuitable("it has no memory backend");
    const std::string shown = to_printable(memory.id);
    if (type != "child<memory-backend-file>")
        return unsuitable(fmt::format("its memory '{}' is no file ({})", shown, to_printable(type)));
    const std::string path = "/objects/" + memory.id;
    const auto share = GM_TRY(ask("qom-get", {{"path", path}, {"property", "share"}}));
    if (share != true) return unsuitable(fmt::format("its memory '{}' is not shared (share=off)", shown));
    memory.path = GM_TRY(ask_text("qom-get", {{"path", path}, {"property", "mem-path"}}));
    const auto size = GM_TRY(ask("qom-get", {{"path", path}, {"property", "size"}}));
    if (!size.is_number_unsigned()) return qmp_broken("a memory backend without a size");
    memory.size_bytes = size.get<std::uint64_t>();
    // Before 8.1 there is no such property.
    const auto offset = ask("qom-get", {{"path", path}, {"property", "offset"}});
    if (offset && offset->is_number_unsigned()) memory.offset_bytes = offset->get<std::uint64_t>();
    return memory;
}

Result<Fd> QemuMachine::open_memory(const QemuMemory& memory) const {
    const PeerCredentials peer = GM_TRY(stream_.peer());
    const std::string path =
        memory.path.starts_with('/') ? memory.path : fmt::format("/proc/{}/cwd/{}", peer.pid, memory.path);
    const std::string context = fmt::format("QEMU's memory '{}'", to_printable(memory.id));
    const PathFacts named = GM_TRY_CONTEXT(path_facts(path), context);
    if (named.kind == FileKind::folder)
        return unsuitable(fmt::format("its memory '{}' is a file without a name: {} is a folder",
                                      to_printable(memory.id), to_printable(path)));
    Fd file = GM_TRY_CONTEXT(open_file(path, OpenMode::read), context);
    const FileFacts facts = GM_TRY_CONTEXT(file_facts(file), context);
    const auto mappings = GM_TRY_CONTEXT(process_mappings(peer.pid), context);
    // A file that took the name of QEMU's since, or another one of that name in QEMU's container.
    if (std::ranges::none_of(mappings, [&](const ProcessMapping& mapping) {
            return mapping.inode == facts.inode && mapping.sharing == MapSharing::shared &&
                   mapping.offset_bytes == memory.offset_bytes;
        }))
        return Error{Errc::unavailable, fmt::format("{}: process {} has not mapped the file that is at {}",
                                                    context, peer.pid, to_printable(path))};
    if (facts.size_bytes < memory.offset_bytes || facts.size_bytes - memory.offset_bytes < memory.size_bytes)
        return Error{Errc::corrupt, fmt::format("{}: {} has {} bytes; {} from byte {} on are mapped", context,
                                                to_printable(path), facts.size_bytes, memory.size_bytes,
                                                memory.offset_bytes)};
    return file;
}

Result<bool> QemuMachine::ignores_shared() {
    const auto answer = GM_TRY(ask("query-migrate-capabilities"));
    if (!answer.is_array()) return qmp_broken("'query-migrate-capabilities' gave no list");
    for (const auto& one : answer)
        if (one.is_object() && text_in(one, "capability") == capability) return is_true_in(one, "state");
    return Error{Errc::unsupported,
                 fmt::format("QEMU: it has no {}: that came with version 4.0", capability)};
}

Result<void> QemuMachine::set_ignore_shared(bool is_on) {
    nlohmann::json wanted = nlohmann::json::array();
    wanted.push_back({{"capability", capability}, {"state", is_on}});
    GM_TRY(ask("migrate-set-capabilities", {{"capabilities", std::move(wanted)}}));
    return {};
}

Result<void> QemuMachine::give(const char* name, FdView fd) {
    qmp_.set_time(conversation_timeout_ms);
    const std::array<FdView, 1> fds{fd};
    GM_TRY(qmp_.ask("getfd", {{"fdname", name}}, fds));
    return {};
}

Result<std::string> QemuMachine::migration_status() {
    const auto answer = GM_TRY(ask("query-migrate"));
    if (!answer.is_object()) return qmp_broken("'query-migrate' gave no object");
    std::string status = text_in(answer, "status");
    if (status != "failed") return status;
    const std::string reason = text_in(answer, "error-desc");
    return Error{Errc::io, fmt::format("QEMU: its migration failed: {}",
                                       reason.empty() ? "it does not say why" : to_printable(reason))};
}

Result<std::vector<std::byte>> QemuMachine::take_state(const UnixStream& stream) {
    std::vector<std::byte> state;
    std::vector<std::byte> buffer(std::size_t{256} << 10);
    const auto deadline = Clock::now() + std::chrono::milliseconds{migration_timeout_ms};
    bool is_whole = false;
    while (Clock::now() < deadline) {
        if (is_whole) {
            std::this_thread::sleep_for(look_again);
        } else if (GM_TRY(stream.wait_readable(static_cast<int>(look_again.count())))) {
            const auto received = GM_TRY(stream.receive(buffer));
            if (!received) continue;
            is_whole = received->count_bytes == 0;
            if (received->count_bytes > max_device_state_bytes - state.size())
                return Error{Errc::out_of_range,
                             fmt::format("QEMU: its device state is more than the limit of {} bytes",
                                         max_device_state_bytes)};
            state.insert(state.end(), buffer.begin(),
                         buffer.begin() + static_cast<std::ptrdiff_t>(received->count_bytes));
            if (!is_whole) continue;
        }
        const std::string status = GM_TRY(migration_status());
        if (status == "completed") is_migrating_ = false;
        if (status == "completed" && is_whole) return state;
        if (status == "cancelled") break;
    }
    return Error{Errc::timed_out,
                 fmt::format("QEMU: its device state did not come within {} ms", migration_timeout_ms)};
}

Result<std::vector<std::byte>> QemuMachine::freeze() {
    const std::string state = GM_TRY(run_state());
    ignored_shared_ = GM_TRY(ignores_shared());
    was_running_ = state == "running";
    auto [ours, its] = GM_TRY(UnixStream::pair());
    GM_TRY(ours.set_nonblocking());
    is_frozen_ = true;
    GM_TRY(set_ignore_shared(true));
    if (was_running_) GM_TRY(ask("stop"));
    GM_TRY(give(state_name, its.view()));
    its = UnixStream{};
    if (auto begun = ask("migrate", {{"uri", state_uri}}); !begun) {
        static_cast<void>(ask("closefd", {{"fdname", state_name}}));
        return std::move(begun).error();
    }
    is_migrating_ = true;
    return take_state(ours);
}

Result<void> QemuMachine::end_migration() {
    GM_TRY(ask("migrate_cancel"));
    const auto deadline = Clock::now() + std::chrono::milliseconds{conversation_timeout_ms};
    for (;;) {
        const auto status = migration_status();
        // A failed one has ended too.
        if (!status && status.error().code() != Errc::io) return status.error();
        if (!status || *status == "cancelled" || *status == "completed") break;
        if (Clock::now() > deadline)
            return Error{Errc::timed_out, "QEMU: its migration does not end, and the guest stays stopped"};
        std::this_thread::sleep_for(look_again);
    }
    is_migrating_ = false;
    return {};
}

Result<void> QemuMachine::thaw() {
    if (!std::exchange(is_frozen_, false)) return {};
    if (is_migrating_) GM_TRY(end_migration());
    auto restored = set_ignore_shared(ignored_shared_);
    if (was_running_) GM_TRY(ask("cont"));
    return restored;
}

Result<void> QemuMachine::wait_until_loaded() {
    const auto deadline = Clock::now() + std::chrono::milliseconds{migration_timeout_ms};
    while (GM_TRY(run_state()) == "inmigrate") {
        if (Clock::now() > deadline)
            return Error{Errc::timed_out,
                         fmt::format("QEMU: it did not load the state within {} ms", migration_timeout_ms)};
        std::this_thread::sleep_for(std::chrono::milliseconds{1});
    }
    return {};
}

Result<void> QemuMachine::resume(std::span<const std::byte> state) {
    GM_TRY(set_ignore_shared(true));
    auto [ours, its] = GM_TRY(UnixStream::pair());
    GM_TRY(give(state_name, its.view()));
    its = UnixStream{};
    const Feeder feeder{ours, state};
    GM_TRY(ask("migrate-incoming", {{"uri", state_uri}}));
    GM_TRY(wait_until_loaded());
    // The state is that of a stopped guest.
    GM_TRY(ask("cont"));
    return {};
}

}  // namespace guestmem::cli
