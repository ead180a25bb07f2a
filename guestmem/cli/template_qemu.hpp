// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/template/maker.hpp"
#include "guestmem/mem/template/manifest.hpp"

/// Templates of a QEMU, and QEMUs of a template.
///
/// Contract: make_from_qemu() lets the guest go on, whatever fails, and leaves nothing behind then. fork_into_qemus()
/// ends when all of its QEMUs have, and takes SIGINT, SIGTERM and SIGHUP for them: the first is handed to each, the
/// second kills. Where one of them cannot be started, none is left. Each holds the template's lock: it cannot be
/// removed before the last has ended, also when this process is killed.
/// Threads: one at a time; for programs, since they block signals.
/// Limits: max_qemu_forks at once; a state of max_state_bytes.

namespace guestmem::cli {

inline constexpr std::uint64_t max_qemu_forks = 1000;

/// Provenance: qemu.version, qemu.machine, qemu.memory, qemu.file, and layout=qemu-ramblock: the image is that of
/// QEMU's RAM block, whose guest addresses only QEMU knows.
struct QemuMakeOptions {
    std::string folder;       ///< of the template to be
    std::string parent = {};  ///< folder of the template to which it is a difference; empty: none
    MakerOptions maker = {};
    std::vector<std::string> notes = {};
};
[[nodiscard]] Result<Manifest> make_from_qemu(const std::string& socket, const QemuMakeOptions& options);

struct QemuForkOptions {
    std::string folder;  ///< of the template
    std::uint64_t count = 1;
    std::vector<std::string> command =
        {};  ///< of QEMU; {index} and {generation} stand for those of each fork
    bool json = false;
};
/// Why these words cannot be a fork's command; empty: they can.
[[nodiscard]] std::string fault_of_command(const std::vector<std::string>& command);

/// Prints a line for each fork, then waits. Whether all of them ended with status 0.
[[nodiscard]] Result<bool> fork_into_qemus(const QemuForkOptions& options);

}  // namespace guestmem::cli
