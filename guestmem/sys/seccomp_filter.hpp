// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/base/result.hpp"
#include "guestmem/sys/filter_program.hpp"

/// The system calls that are left to the share service: a filter in the kernel, for good.
///
/// Concepts: an allow list. It has the calls that the service, its log and the C library make: descriptors,
/// memory, clocks, threads, fork for a keeper, and local sockets. Where the right depends on an argument, the argument
/// is looked at.
/// Contract: from install_service_filter() on, every thread of this process and all its children make only those
/// calls. No program is started (execve), no process is traced or looked into, sockets are AF_UNIX, no memory is
/// writable and executable at once, no namespace is made, no file gets the set-user-id bit, and without
/// may_make_files no file is made by opening it; with it only one that was not there (O_CREAT with O_EXCL). clone3,
/// whose argument a filter cannot see, says that it does not exist; the C library takes clone then.
/// Threads: any; it holds for all.
/// Limits: builds whose instruments make system calls of their own cannot have it: find_filter_obstacle().
/// Known holes: files that exist may be opened for writing where the user may; paths are no matter of a filter.

namespace guestmem {

struct ServiceFilterOptions {
    FilterAnswer answer = FilterAnswer::kill;
    bool may_make_files = false;  ///< backings that are files or shm objects
};

[[nodiscard]] Result<void> install_service_filter(const ServiceFilterOptions& options);

}  // namespace guestmem
