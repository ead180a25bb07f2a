// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/vm_client.hpp"

#include <fmt/format.h>

#include "guestmem/cli/report.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/vmm/vm_control.hpp"

namespace guestmem::cli {

Result<std::string> VmClient::path_of(const VmOptions& options) {
    if (!options.control.empty()) return options.control;
    return vmm::vm_control_path(runtime_folder(), options.name);
}

Result<VmClient> VmClient::connect(const VmOptions& options) {
    const std::string path = GM_TRY(path_of(options));
    auto client = connect(path, answer_ms);
    if (!client && client.error().code() == Errc::unavailable) {
        return Error{Errc::unavailable, client.error().os_error(),
                     fmt::format("no machine '{}' runs: nobody answers at {}; 'guestmem vm list' names those "
                                 "that do",
                                 to_printable(options.name), path)};
    }
    return client;
}

Result<VmClient> VmClient::connect(const std::string& path, int timeout_ms) {
    return VmClient{GM_TRY(control::Client::connect(path, timeout_ms))};
}

Result<std::string> VmClient::call(const std::string& name, const std::string& arguments) {
    return GM_TRY(client_.call(name, arguments)).result;
}

int finish_vm_command(const Result<void>& status) { return status ? exit_ok : report(status.error()); }

}  // namespace guestmem::cli
