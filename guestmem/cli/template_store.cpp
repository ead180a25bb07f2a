// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/template_store.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "guestmem/mem/template/template.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/folder.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::cli {

std::string usual_store() {
    if (own_user() == 0) return "/var/lib/guestmem/templates";
    if (const auto data = environment("XDG_DATA_HOME"); data && data->starts_with('/'))
        return *data + "/guestmem/templates";
    return environment("HOME").value_or("") + "/.local/share/guestmem/templates";
}

void add_store_option(CLI::App& app, std::string& store) {
    store = usual_store();
    app.add_option("--store", store, "The folder of templates")->capture_default_str();
}

void add_compress_option(CLI::App& app, int& level) {
    // A flag, whose value is "true" when it has none: it takes no word behind it, which may be a NAME.
    app.add_flag("--compress", level,
                 "Store pages compressed, zstd's LEVEL (usually 1): smaller, and forks are copies")
        ->option_text("[=LEVEL]")
        ->check(CLI::Range(min_compression_level, max_compression_level))
        ->transform([](const std::string& text) { return text == "true" ? std::string{"1"} : text; });
}

std::string template_folder(const std::string& store, const std::string& name) {
    std::string path = name.contains('/') ? name : fmt::format("{}/{}", store, name);
    while (path.size() > 1 && path.ends_with('/')) path.pop_back();
    return path;
}

Result<TemplateMaker> begin_template(const std::string& folder, const std::string& parent,
                                     const MakerOptions& options) {
    if (parent.empty()) return TemplateMaker::begin(folder, options);
    auto opened = GM_TRY(Template::open(parent));
    return TemplateMaker::begin_difference(folder, std::move(opened), options);
}

Result<void> make_store(const std::string& folder_of_template) {
    const std::string store = parent_folder(folder_of_template);
    // From the store up, those that are not there.
    std::vector<std::string> missing;
    for (std::string folder = store; !GM_TRY(path_facts(folder)).exists; folder = parent_folder(folder))
        missing.push_back(folder);
    if (missing.empty()) return {};
    std::error_code failure;
    std::filesystem::create_directories(parent_folder(store), failure);
    if (failure)
        return Error{Errc::io, failure.value(),
                     fmt::format("make {}: {}", parent_folder(store), failure.message())};
    auto made = guestmem::make_folder(store, 0700);
    if (!made && made.error().code() != Errc::already_exists) return std::move(made).error();
    // Their names have to survive a power cut as the templates do.
    for (const std::string& folder : missing) GM_TRY(sync_folder(parent_folder(folder)));
    return {};
}

}  // namespace guestmem::cli
