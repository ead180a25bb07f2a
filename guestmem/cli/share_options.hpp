// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "guestmem/cli/exit_codes.hpp"

/// What the words of `guestmem share ...` say, as plain values: share_commands.cpp fills them in, one file per
/// subcommand acts on them.
///
/// Threads: any; plain values.

namespace guestmem::cli {

struct ServeOptions {
    std::string config;
    std::string quick;
    std::string size;
    std::uint64_t vectors = 1;
    std::optional<std::uint64_t> slots;
    std::string socket;
    std::string socket_mode = "0600";
    std::string ids = "stable";
    std::string control;
    bool only_check = false;
    /// A path, "manager", or an empty text: the default path; nothing: only what the service manager offers by itself.
    std::optional<std::string> keeper;
    bool is_upgrade = false;
    bool has_no_sandbox = false;
    bool is_kept = false;
    // The stock server's words.
    std::optional<std::string> stock_socket;
    std::optional<std::string> stock_name;
    std::optional<std::string> stock_folder;
    std::optional<std::string> stock_size;
    std::optional<std::uint64_t> stock_vectors;
    std::optional<std::string> pid_file;
    bool foreground = false;
    bool verbose = false;
};

struct CheckOptions {
    std::string config;
    std::string vm;  ///< empty: look at all rights
    std::string share;
    bool is_create = false;
    bool json = false;
};

struct AttachLineOptions {
    std::string config = "/etc/guestmem/share.toml";
    std::string share;
    std::string vm;
    bool is_qemu = false;
    bool is_libvirt = false;
};

/// Common to all host tools.
struct ToolOptions {
    std::string control;
    bool json = false;
};

struct StatOptions : ToolOptions {
    std::string share;
};

struct WriteOptions : ToolOptions {
    std::string share;
    std::optional<std::string> message;
    std::optional<std::string> file;
    std::uint64_t offset = 0;
};

struct ReadOptions : ToolOptions {
    std::string share;
    std::uint64_t offset = 0;
    std::optional<std::uint64_t> length;
    bool raw = false;
};

struct RingOptions : ToolOptions {
    std::string share;
    std::string peer;
    std::uint32_t vector = 0;
    bool has_to_wait = false;  ///< until the peer is ready
    std::optional<std::uint64_t> ready_word;
    double timeout_seconds = 30;
};

struct SendOptions : RingOptions {
    std::string message;
    std::uint64_t offset = 0;
};

struct WaitOptions : ToolOptions {
    std::string share;
    std::uint32_t vector = 0;
    double timeout_seconds = -1;
};

struct ClientOptions : ToolOptions {
    std::string share;
    std::string socket;
    bool verbose = false;
};

int share_serve(const ServeOptions& options);
int share_reload(const ToolOptions& options);
int share_retire(const ToolOptions& options);
int share_check(const CheckOptions& options);
int share_attach_line(const AttachLineOptions& options);
int share_list(const ToolOptions& options);
int share_stat(const StatOptions& options);
int share_write(const WriteOptions& options);
int share_read(const ReadOptions& options);
int share_ring(const RingOptions& options);
int share_send(const SendOptions& options);
int share_wait(const WaitOptions& options);
int share_client(const ClientOptions& options);

}  // namespace guestmem::cli
