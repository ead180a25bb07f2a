// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "guestmem/share/keeper/keeper.hpp"
#include "guestmem/sys/fd.hpp"

/// What an instance of the service starts with: who keeps its descriptors, what an instance before it has left, and
/// sockets that were opened for it.
///
/// Threads: a plain value.

namespace guestmem::share {

/// A listening socket of socket activation.
struct NamedSocket {
    std::string name;       ///< FileDescriptorName= of its unit
    std::string path = {};  ///< that it is bound to; empty where it is none of AF_UNIX
    Fd fd = {};
};

struct Inheritance {
    std::unique_ptr<Keeper> keeper;  ///< none: the service's clients end with it
    std::vector<KeptFd> kept;
    std::vector<NamedSocket> activated;
    std::vector<std::string> unknown;  ///< names of what was passed and is neither of both; it is closed
};

}  // namespace guestmem::share
