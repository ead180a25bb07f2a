// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/file_lock.hpp"

/// Who uses a template: a process that has it open, and until when.
///
/// Concepts: a lease is a shared lock on the manifest, which keeps the template from being removed or replaced, and a
/// file in the folder forks/ that says which process it is, locked for as long as it lives. The kernel drops locks with
/// the last descriptor: also when the process is killed. A VMM may note in it what is known of a fork.
/// Contract: a template with a lease cannot be retired; one that is being retired gives no lease.
/// Threads: any.
/// Known holes: a child that inherits the descriptors keeps the lease.

namespace guestmem {

/// What a VMM says of a fork.
struct ForkNote {
    std::string generation = {};
    std::int32_t pid = 0;                    ///< who has it: a child of the process with the lease, maybe
    std::uint64_t first_instruction_ns = 0;  ///< from the wish for a fork until its guest ran; 0: not told

    friend bool operator==(const ForkNote&, const ForkNote&) = default;
};
inline constexpr std::size_t max_lease_bytes = std::size_t{1} << 20;

struct Tenant {
    std::int32_t pid = 0;
    std::uint64_t since_s = 0;         ///< seconds since 1970
    std::vector<ForkNote> forks = {};  ///< that were noted
};

class Lease {
public:
    /// Of the template whose manifest that is; one that was removed or replaced since is an error (unavailable).
    [[nodiscard]] static Result<std::shared_ptr<const Lease>> take(const std::string& folder,
                                                                   FdView manifest);
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease();

    /// For who looks at the template; lost with the lease. An error (out_of_range) when the file has max_lease_bytes.
    [[nodiscard]] Result<void> note(const ForkNote& fork) const;

private:
    Lease(FileLock in_use, FileLock own, std::string path, std::uint64_t written_bytes);

    FileLock in_use_;
    FileLock own_;
    std::string path_;
    mutable std::mutex mutex_;
    mutable std::uint64_t written_bytes_ = 0;  ///< under mutex_
};

/// The processes with a lease. Files of dead ones are removed.
[[nodiscard]] Result<std::vector<Tenant>> tenants_of(const std::string& folder);

/// The right to remove or replace a template; nothing when it has a lease.
[[nodiscard]] Result<std::optional<FileLock>> try_retire(const std::string& folder);

}  // namespace guestmem
