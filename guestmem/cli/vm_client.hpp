// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/cli/vm_options.hpp"
#include "guestmem/control/client.hpp"

/// A running machine as the host's tools see it: its control socket, found by name.
///
/// Contract: a name is letters, digits, '-', '_' and '.', so that it never leads out of the folder. Whoever does not
/// answer within answer_ms is an error.
/// Threads: one at a time.

namespace guestmem::cli {

class VmClient {
public:
    static constexpr int answer_ms = 10'000;

    [[nodiscard]] static Result<VmClient> connect(const VmOptions& options);
    [[nodiscard]] static Result<VmClient> connect(const std::string& path, int timeout_ms);
    /// The socket that the options name.
    [[nodiscard]] static Result<std::string> path_of(const VmOptions& options);

    /// The result text of a call.
    [[nodiscard]] Result<std::string> call(const std::string& name, const std::string& arguments = "{}");

private:
    explicit VmClient(control::Client client) : client_(std::move(client)) {}
    control::Client client_;
};

/// Prints the error of a command, if it has one; its exit code.
int finish_vm_command(const Result<void>& status);

}  // namespace guestmem::cli
