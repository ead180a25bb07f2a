// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/template/maker.hpp"

/// Where the templates of a command line are.
///
/// Contract: a NAME with a '/' in it is the path of a template's folder, any other one a template in the store.
/// Threads: one at a time.

namespace CLI {
class App;
}

namespace guestmem::cli {

/// root's: /var/lib/guestmem/templates; else guestmem/templates in $XDG_DATA_HOME or ~/.local/share.
[[nodiscard]] std::string usual_store();
void add_store_option(CLI::App& app, std::string& store);

/// --compress[=LEVEL]; 0 when it is not there.
void add_compress_option(CLI::App& app, int& level);

/// The folder of a template.
[[nodiscard]] std::string template_folder(const std::string& store, const std::string& name);
/// Of a difference, when `parent` is the folder of a template.
[[nodiscard]] Result<TemplateMaker> begin_template(const std::string& folder, const std::string& parent,
                                                   const MakerOptions& options);
/// Makes the store, mode 0700, where there is none.
[[nodiscard]] Result<void> make_store(const std::string& folder_of_template);

}  // namespace guestmem::cli
