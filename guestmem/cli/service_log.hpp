// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "guestmem/base/log.hpp"

/// The log of a service on standard error: "guestmem-share: info: text".
///
/// Contract: where the service manager reads standard error ($JOURNAL_STREAM) it gets the level in its own form.
/// Threads: any.

namespace guestmem::cli {

[[nodiscard]] std::unique_ptr<Log> make_service_log(const std::string& name, bool is_verbose);

}  // namespace guestmem::cli
