// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "guestmem/base/result.hpp"

/// A folder of templates.
///
/// Contract: a template is removed whole: first its name, then its bytes. What makers and removers that were killed
/// have left is found by its name and by the lock that nobody holds.
/// Threads: any; processes, too.

namespace guestmem {

/// The names of the templates in it, sorted; a store that is not there has none.
[[nodiscard]] Result<std::vector<std::string>> list_templates(const std::string& store);

/// The names of the templates of its store that are differences to it.
[[nodiscard]] Result<std::vector<std::string>> differences_to(const std::string& folder);

/// An error (busy) that names the processes when it has forks, or the differences to it.
[[nodiscard]] Result<void> remove_template(const std::string& folder);

/// Removes what was not finished by processes that are gone.
[[nodiscard]] Result<void> remove_leftovers(const std::string& store);

}  // namespace guestmem
