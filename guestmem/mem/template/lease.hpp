// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
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
/// the last descriptor: also when the process is killed.
/// Contract: a template with a lease cannot be retired; one that is being retired gives no lease.
/// Threads: any.
/// Known holes: a child that inherits the descriptors keeps the lease.

namespace guestmem {

struct Tenant {
    std::int32_t pid = 0;
    std::uint64_t since_s = 0;  ///< seconds since 1970
};

class Lease {
public:
    /// Of the template whose manifest that is; one that was removed or replaced since is an error (unavailable).
    [[nodiscard]] static Result<std::shared_ptr<const Lease>> take(const std::string& folder,
                                                                   FdView manifest);
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease();

private:
    Lease(FileLock in_use, FileLock own, std::string path);

    FileLock in_use_;
    FileLock own_;
    std::string path_;
};

/// The processes with a lease. Files of dead ones are removed.
[[nodiscard]] Result<std::vector<Tenant>> tenants_of(const std::string& folder);

/// The right to remove or replace a template; nothing when it has a lease.
[[nodiscard]] Result<std::optional<FileLock>> try_retire(const std::string& folder);

}  // namespace guestmem
