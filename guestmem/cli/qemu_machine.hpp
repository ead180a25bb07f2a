// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/cli/qmp.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// A QEMU whose guest is stopped and taken down as memory file and device state, or is given one to go on from.
///
/// Concepts: the device state is QEMU's migration stream with the capability x-ignore-shared, which leaves out memory
/// that is shared. It goes through a socket that QEMU is handed ("fd:"), in both directions: no file, no shell.
/// Contract: freeze() stops the guest, and thaw() lets it go on if it ran, with the capability as it was; the
/// destructor thaws what is frozen. Waits are bounded: an answer of QEMU takes conversation_timeout_ms, a migration
/// migration_timeout_ms.
/// Threads: one at a time.
/// Known holes: who kills this process in between leaves the guest stopped; `cont` wakes it. A guest that was paused
/// stays in QEMU's state "postmigrate": it goes on by `cont`, and QEMU migrates it again only after that. QEMU
/// before 8.1 leaves out shared memory without a file too (memfd), so machines with such memory are refused.

namespace guestmem::cli {

inline constexpr int migration_timeout_ms = 30'000;
/// Of a stream without memory: devices, and a display's memory.
inline constexpr std::size_t max_device_state_bytes = std::size_t{1} << 30;
inline constexpr std::size_t max_qemu_objects = 256;

struct QemuFacts {
    std::string version;  ///< "7.2.22"
    std::string machine;  ///< "pc-q35-7.2"
    bool is_running = false;
};

/// The one memory backend that is all RAM of a machine.
struct QemuMemory {
    std::string id;
    std::string path;  ///< as QEMU was told: a relative one is in QEMU's working folder
    std::uint64_t size_bytes = 0;
    std::uint64_t offset_bytes = 0;  ///< in the file
};

class QemuMachine {
public:
    [[nodiscard]] static Result<std::unique_ptr<QemuMachine>> connect(const std::string& path);
    QemuMachine(const QemuMachine&) = delete;
    QemuMachine& operator=(const QemuMachine&) = delete;
    ~QemuMachine();

    [[nodiscard]] Result<QemuFacts> facts();
    /// An error that says what to start QEMU with, unless its RAM is one shared file.
    [[nodiscard]] Result<QemuMemory> memory();
    /// The file behind it, for reading: the one that the process has mapped, or an error.
    [[nodiscard]] Result<Fd> open_memory(const QemuMemory& memory) const;

    /// Stops the guest; its device state.
    [[nodiscard]] Result<std::vector<std::byte>> freeze();
    [[nodiscard]] Result<void> thaw();

    /// For a QEMU that was started with -incoming defer: gives it the state, and lets the guest go on.
    [[nodiscard]] Result<void> resume(std::span<const std::byte> state);

private:
    explicit QemuMachine(UnixStream stream) : stream_(std::move(stream)), qmp_(stream_) {}
    [[nodiscard]] Result<nlohmann::json> ask(std::string_view command, const nlohmann::json& arguments = {});
    [[nodiscard]] Result<std::string> ask_text(std::string_view command, const nlohmann::json& arguments);
    [[nodiscard]] Result<std::string> run_state();
    [[nodiscard]] Result<bool> ignores_shared();
    [[nodiscard]] Result<void> set_ignore_shared(bool is_on);
    [[nodiscard]] Result<void> give(const char* name, FdView fd);
    [[nodiscard]] Result<std::vector<std::byte>> take_state(const UnixStream& stream);
    [[nodiscard]] Result<std::string> migration_status();
    [[nodiscard]] Result<void> end_migration();
    [[nodiscard]] Result<void> wait_until_loaded();

    UnixStream stream_;
    QmpConversation qmp_;
    bool is_frozen_ = false;
    bool is_migrating_ = false;
    bool was_running_ = false;
    bool ignored_shared_ = false;
};

}  // namespace guestmem::cli
