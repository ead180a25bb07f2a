// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "guestmem/base/sizes.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/cli/vm_client.hpp"
#include "guestmem/sys/folder.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/unix_socket.hpp"
#include "guestmem/vmm/vm_control.hpp"

namespace guestmem::cli {
namespace {

/// More files than a host has machines by far.
constexpr std::size_t max_files = 65'536;
/// A machine that does not answer does not hold up the list of the others for longer.
constexpr int list_answer_ms = 1'000;

struct Listed {
    std::string name;
    std::string state = "no answer";
    vmm::VmStatus status = {};
};

Result<vmm::VmStatus> ask(const std::string& path) {
    VmClient client = GM_TRY(VmClient::connect(path, list_answer_ms));
    return vmm::parse_vm_status(GM_TRY(client.call("vm.stat")));
}

/// A listener takes the place of a socket that nobody serves, and removes it when it goes; it leaves others alone, also
/// one that begins to serve at this moment.
void remove_stale(const std::string& path) {
    const auto listener = UnixListener::create({.path = path});
    static_cast<void>(listener.has_value());
}

Result<std::vector<Listed>> look() {
    const std::string folder = runtime_folder();
    std::vector<Listed> machines;
    if (!is_folder(folder)) return machines;
    for (const FolderEntry& entry : GM_TRY(list_folder(folder, max_files))) {
        const auto name = vmm::vm_name_of(entry.name);
        if (!name || entry.kind != FileKind::other) continue;
        const std::string path = folder + "/" + entry.name;
        auto status = ask(path);
        if (status) {
            const std::string state = status->state;
            machines.push_back({*name, state, *std::move(status)});
        } else if (status.error().code() == Errc::unavailable) {
            remove_stale(path);
        } else {
            machines.push_back({.name = *name});
        }
    }
    return machines;
}

std::string json_of(const std::vector<Listed>& machines) {
    auto list = nlohmann::json::array();
    for (const Listed& one : machines) {
        nlohmann::json entry{{"name", one.name}, {"state", one.state}};
        if (one.status.pid != 0) {
            entry["pid"] = one.status.pid;
            entry["memory"] = one.status.memory_bytes;
        }
        list.push_back(std::move(entry));
    }
    return nlohmann::json{{"vms", std::move(list)}}.dump();
}

Result<void> list(const VmListOptions& options) {
    const auto machines = GM_TRY(look());
    if (options.json) {
        print(json_of(machines) + "\n");
        return {};
    }
    print(fmt::format("{:<31} {:>8} {:<9} {:>8}\n", "NAME", "PID", "STATE", "MEMORY"));
    for (const Listed& one : machines) {
        const bool has_answered = one.status.pid != 0;
        print(fmt::format("{:<31} {:>8} {:<9} {:>8}\n", one.name,
                          has_answered ? std::to_string(one.status.pid) : "-", to_printable(one.state),
                          has_answered ? format_size(one.status.memory_bytes) : "-"));
    }
    return {};
}

}  // namespace

int vm_list(const VmListOptions& options) { return finish_vm_command(list(options)); }

}  // namespace guestmem::cli
