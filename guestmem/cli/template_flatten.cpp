// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "guestmem/base/sizes.hpp"
#include "guestmem/cli/exit_codes.hpp"
#include "guestmem/cli/progress_bar.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/cli/template_commands.hpp"
#include "guestmem/cli/template_store.hpp"
#include "guestmem/mem/backends/size_text.hpp"
#include "guestmem/mem/template/flatten.hpp"
#include "guestmem/mem/template/template.hpp"

namespace guestmem::cli {
namespace {

struct FlattenOptions {
    std::string name;
    std::string new_name;
    std::string store;
    int compression_level = 0;
    bool json = false;
};

Result<Manifest> flatten(const FlattenOptions& options) {
    const auto opened = GM_TRY(Template::open(template_folder(options.store, options.name)));
    const std::string folder = template_folder(options.store, options.new_name);
    GM_TRY(make_store(folder));
    MakerOptions maker;
    if (options.compression_level != 0)
        maker = {.encoding = ImageEncoding::zstd, .compression_level = options.compression_level};
    ProgressBar bar{options.new_name, opened->manifest().image_bytes};
    return flatten_template(opened, folder, maker, [&](std::uint64_t done) { bar.show(done); });
}

int run(const FlattenOptions& options) {
    const auto made = flatten(options);
    if (!made) return report(made.error());
    if (options.json)
        print(to_text(*made));
    else
        print(fmt::format("{}: {} of memory, {} stored, id {}\n", options.new_name,
                          format_qemu_size(made->image_bytes),
                          format_qemu_size(made->data_pages * page_size_bytes), made->id));
    return exit_ok;
}

}  // namespace

Action describe_template_flatten(CLI::App& app) {
    auto options = std::make_shared<FlattenOptions>();
    app.footer(
        "Example: guestmem template flatten day2 day2-whole\n"
        "Makes a template that needs no parent: with the memory and the state of NAME, and an id of its own. NAME\n"
        "stays.\n"
        "With --compress, or without it for a compressed one, it changes how pages are stored.\n"
        "Exit codes: 0 it is made, 1 it could not be made, 2 wrong words.");
    app.add_option("NAME", options->name, "A template in the store, or the path of its folder")->required();
    app.add_option("NEW", options->new_name, "A name in the store, or the path of a folder to be")
        ->required();
    add_compress_option(app, options->compression_level);
    add_store_option(app, options->store);
    app.add_flag("--json", options->json, "Print the manifest");
    return [options] { return run(*options); };
}

}  // namespace guestmem::cli
