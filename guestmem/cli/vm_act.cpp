// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <chrono>
#include <string_view>
#include <thread>

#include "guestmem/cli/report.hpp"
#include "guestmem/cli/vm_client.hpp"
#include "guestmem/sys/deadline.hpp"
#include "guestmem/vmm/vm_calls.hpp"

namespace guestmem::cli {
namespace {

Result<void> change_state(const VmOptions& options, const std::string& call) {
    VmClient client = GM_TRY(VmClient::connect(options));
    const std::string result = GM_TRY(client.call(call));
    if (options.json) {
        print(result + "\n");
        return {};
    }
    const auto reply = GM_TRY(vmm::parse_state_reply(result));
    print(fmt::format("{}{}\n", to_printable(reply.state), reply.has_changed ? "" : " already"));
    return {};
}

Result<void> call_without_result(const VmOptions& options, const std::string& call) {
    VmClient client = GM_TRY(VmClient::connect(options));
    const std::string result = GM_TRY(client.call(call));
    if (options.json) print(result + "\n");
    return {};
}

Result<void> stop(const VmStopOptions& options) {
    constexpr std::chrono::milliseconds pause{5};
    GM_TRY(call_without_result(options, "vm.stop"));
    const std::string path = GM_TRY(VmClient::path_of(options));
    const Deadline deadline{
        std::chrono::milliseconds{static_cast<std::int64_t>(options.timeout_seconds * 1000)}};
    // The socket goes last: when nobody serves it the guest is gone.
    for (;;) {
        const auto client = VmClient::connect(path, 1'000);
        if (!client && client.error().code() == Errc::unavailable) return {};
        if (deadline.has_passed()) {
            return Error{Errc::timed_out,
                         fmt::format("machine '{}' was told to stop and is still there after {} s",
                                     to_printable(options.name), options.timeout_seconds)};
        }
        std::this_thread::sleep_for(pause);
    }
}

}  // namespace

int vm_pause(const VmOptions& options) { return finish_vm_command(change_state(options, "vm.pause")); }
int vm_resume(const VmOptions& options) { return finish_vm_command(change_state(options, "vm.resume")); }
int vm_stop(const VmStopOptions& options) { return finish_vm_command(stop(options)); }
int vm_power_button(const VmOptions& options) {
    return finish_vm_command(call_without_result(options, "vm.power_button"));
}

}  // namespace guestmem::cli
