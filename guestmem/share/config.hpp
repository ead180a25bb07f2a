// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/share/backing.hpp"
#include "guestmem/share/rights.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// What a share service is asked to serve, as plain values; config_file.hpp reads them from TOML, and
/// quick_config() makes them from command-line words.
///
/// Concepts: a share is memory with doorbells, known by name. A door is one ivshmem socket: it leads to one
/// share and admits one principal (a named VM, or anybody who may open the socket). A door with slots gives
/// those; a door without gives the lowest free slot that no VM owns. A line says where a thing stands in
/// ServiceConfig::file, 0 that it stands nowhere.
/// Contract: find_problem() finds what is wrong with one value; the caller knows where it was written.
/// Limits: the constants below, each with a test at the limit and one past it.
/// Threads: any; plain values.

namespace guestmem::share {

inline constexpr std::size_t max_name_bytes = 31;
inline constexpr std::uint32_t max_slots = 1024;
inline constexpr std::uint32_t default_slots = 64;
/// Each client holds a descriptor for every vector of every slot (probes: 8192 is 36 ms of joining).
inline constexpr std::uint32_t max_slots_times_vectors = 8192;
/// What QEMU's device accepts.
inline constexpr std::uint32_t max_vectors = 2048;
inline constexpr std::size_t max_shares = 256;
inline constexpr std::size_t max_vms = 256;
inline constexpr std::uint64_t max_size_bytes = std::uint64_t{1} << 40;
inline constexpr std::uint64_t max_total_bytes = max_size_bytes * max_shares;
inline constexpr std::uint64_t max_peers = 65'536;
inline constexpr std::uint64_t max_total_vectors = 65'536;
inline constexpr std::uint64_t least_queued_messages = 16;
inline constexpr std::uint64_t max_queued_messages = 1'048'576;
/// From the contiguous pages of arm64 to the largest of x86.
inline constexpr std::uint64_t least_huge_page_bytes = 64 * 1024;
inline constexpr std::uint64_t max_huge_page_bytes = std::uint64_t{16} << 30;
/// As much as the journal has room for.
inline constexpr std::size_t max_path_bytes = 111;
inline constexpr std::size_t max_shm_name_bytes = 110;
inline constexpr std::size_t max_cgroup_pattern_bytes = 1024;

enum class IdPolicy : std::uint8_t {
    stable,   ///< an id is a slot; all slots are announced at the handshake, and nothing after
    classic,  ///< ids in order of arrival, never reused; connect and disconnect notices
};

struct ShareConfig {
    std::string name;
    std::uint64_t size_bytes = 0;
    std::uint32_t vectors = 1;
    std::uint32_t slots = default_slots;
    IdPolicy ids = IdPolicy::stable;
    std::uint64_t huge_page_bytes = 0;
    BackingKind backing = BackingKind::memfd;
    std::string path = {};    ///< of a file, or the shm name
    bool is_kept = false;     ///< its bytes stay when the last peer leaves
    bool is_dynamic = false;  ///< made by a client, gone with the last one
    std::uint32_t line = 0;
};

/// How much a principal, or all of them together, may have at a time.
struct UsageLimits {
    std::uint64_t shares = max_shares;                    ///< that it made, dynamic ones
    std::uint64_t bytes = max_size_bytes;                 ///< of shares that it made
    std::uint64_t peers = max_peers;                      ///< connections that hold a slot
    std::uint64_t vectors = max_total_vectors;            ///< doorbells of shares that it made
    std::uint64_t queued_messages = max_queued_messages;  ///< that wait for its slow readers
};

/// By whom the control socket knows a VM: all that are given have to fit.
struct CredentialMatch {
    std::optional<std::uint32_t> user = {};
    std::optional<std::uint32_t> group = {};
    /// A pattern over the path in the unified hierarchy, "/machine.slice/linux*": `*` goes across '/', and a `\` of
    /// the path ("\x2d") is written twice, or as `?`.
    std::string cgroup = {};
    bool operator==(const CredentialMatch&) const = default;
    [[nodiscard]] bool is_empty() const { return !user && !group && cgroup.empty(); }
};

/// A named VM: what it may reach. Its doors are DoorConfigs of its name.
struct VmConfig {
    std::string name;
    std::optional<ListenOptions> socket = {};  ///< where it speaks the control protocol
    CredentialMatch match =
        {};  ///< with `socket`: who may be there; alone: by whom the control socket knows it
    std::vector<Rule> rules = {};
    UsageLimits limits = {};
    std::uint32_t line = 0;
};

struct DoorConfig {
    std::string share;
    std::string vm;                    ///< empty: whoever may open the socket
    std::vector<std::uint32_t> slots;  ///< empty: the lowest free one that no VM owns
    ListenOptions socket;
    std::uint32_t line = 0;
};

struct ControlConfig {
    ListenOptions socket;
    /// Users who may take memory, attach and ring, beside root and the service's own user.
    std::vector<std::uint32_t> operators;
};

struct Limits {
    std::uint64_t handshake_timeout_ms = 10'000;
    std::uint64_t refusal_hold_ms = 60'000;
    std::uint32_t refusals_held = 64;
    std::uint32_t queued_messages = 16'384;
    std::uint32_t connections_per_uid = 0;  ///< 0: all slots of all shares, and 64 more
};

struct ServiceConfig {
    ControlConfig control;
    Limits limits;
    std::vector<ShareConfig> shares;
    std::vector<DoorConfig> doors;
    std::vector<VmConfig> vms = {};
    UsageLimits totals = {};
    std::string user = {};  ///< whom the service becomes; empty: stays who it is
    std::string file = {};  ///< where this was written; empty: nowhere
};

/// What is wrong with a value, and what to write instead.
struct Problem {
    std::string what;
    std::string advice;
};

[[nodiscard]] std::optional<Problem> find_name_problem(std::string_view name);
[[nodiscard]] std::optional<Problem> find_size_problem(std::uint64_t size_bytes);
[[nodiscard]] std::optional<Problem> find_vectors_problem(std::uint64_t vectors);
[[nodiscard]] std::optional<Problem> find_slots_problem(std::uint64_t slots, std::uint64_t vectors);

/// Of ordinary pages (0), or of huge pages for a share of this size.
[[nodiscard]] std::optional<Problem> find_huge_pages_problem(std::uint64_t huge_page_bytes,
                                                             std::uint64_t size_bytes);
/// The path of a file, the name in /dev/shm; for a memfd, that there is one.
[[nodiscard]] std::optional<Problem> find_path_problem(BackingKind kind, std::string_view path);
[[nodiscard]] std::optional<Problem> find_cgroup_problem(std::string_view pattern);
[[nodiscard]] std::optional<Problem> find_rule_problem(const Rule& rule);

/// The size that ivshmem maps: the next power of two. The bytes between size and extent are zero at birth.
[[nodiscard]] std::uint64_t extent_of(std::uint64_t size_bytes);

/// The slots of a share that doors give to named VMs.
[[nodiscard]] std::vector<std::uint32_t> owned_slots(const ServiceConfig& config, std::string_view share);

/// The service of one share without a file: `socket` gives the lowest free slot, `socket`.N slot N, and
/// `socket`.control is the control socket unless another is named.
struct QuickOptions {
    ShareConfig share;
    std::string socket;
    std::string control;
    std::uint32_t socket_mode = 0600;
};
[[nodiscard]] Result<ServiceConfig> quick_config(const QuickOptions& options);

/// Where the tools look for the service: $GUESTMEM_SHARE_CONTROL, else share.control in the run-time folder.
[[nodiscard]] std::string default_control_path();

}  // namespace guestmem::share
