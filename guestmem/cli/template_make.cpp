// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/cli/exit_codes.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/cli/template_commands.hpp"
#include "guestmem/cli/template_qemu.hpp"
#include "guestmem/cli/template_store.hpp"
#include "guestmem/mem/backends/size_text.hpp"
#include "guestmem/mem/template/maker.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/sys/fd.hpp"

namespace guestmem::cli {
namespace {

struct MakeOptions {
    std::string name;
    std::string store;
    std::string parent;
    std::vector<std::string> memory;
    std::string state;
    std::string qemu;
    std::vector<std::string> notes;
    int compression_level = 0;  ///< 0: raw
    bool json = false;
};

MakerOptions to_maker_options(const MakeOptions& options) {
    if (options.compression_level == 0) return {};
    return {.encoding = ImageEncoding::zstd, .compression_level = options.compression_level};
}
std::string parent_of(const MakeOptions& options) {
    return options.parent.empty() ? "" : template_folder(options.store, options.parent);
}

constexpr std::size_t max_state_file_bytes = std::size_t{1} << 30;

/// FILE[,name=NAME][,at=ADDRESS][,offset=N][,size=N][,rom]
struct MemoryWords {
    std::string path;
    ImageRegion region;
    std::uint64_t offset_bytes = 0;
    bool has_size = false;
};

Result<std::uint64_t> number_of(std::string_view key, std::string_view text) {
    return GM_TRY_CONTEXT(parse_qemu_size(text), std::string{key});
}

Result<MemoryWords> parse_memory(const std::string& text) {
    MemoryWords words;
    words.region.name = "ram";
    std::size_t at = text.find(',');
    words.path = text.substr(0, at);
    while (at != std::string::npos) {
        const std::size_t begin = at + 1;
        at = text.find(',', begin);
        const std::string word = text.substr(begin, at == std::string::npos ? at : at - begin);
        const std::size_t equals = word.find('=');
        const std::string key = word.substr(0, equals);
        const std::string value = equals == std::string::npos ? "" : word.substr(equals + 1);
        if (key == "rom" && equals == std::string::npos) {
            words.region.is_rom = true;
        } else if (key == "name") {
            words.region.name = value;
        } else if (key == "at") {
            words.region.guest_address = GM_TRY(number_of(key, value));
        } else if (key == "offset") {
            words.offset_bytes = GM_TRY(number_of(key, value));
        } else if (key == "size") {
            words.region.size_bytes = GM_TRY(number_of(key, value));
            words.has_size = true;
        } else {
            return Error{
                Errc::invalid_argument,
                fmt::format("'{}' is no property of memory; there are: name, at, offset, size, rom", key)};
        }
    }
    return words;
}

Result<void> add_memory(TemplateMaker& maker, MemoryWords words) {
    const Fd file = GM_TRY(open_file(words.path, OpenMode::read));
    const FileFacts facts = GM_TRY_CONTEXT(file_facts(file), words.path);
    if (words.offset_bytes > facts.size_bytes)
        return Error{Errc::invalid_argument, fmt::format("{}: offset {} is beyond its {} bytes", words.path,
                                                         words.offset_bytes, facts.size_bytes)};
    if (!words.has_size) words.region.size_bytes = facts.size_bytes - words.offset_bytes;
    GM_TRY_CONTEXT(maker.add_file(words.region, file, words.offset_bytes), words.path);
    return {};
}

Result<Manifest> make(const MakeOptions& options, const std::vector<MemoryWords>& memory) {
    const std::string folder = template_folder(options.store, options.name);
    GM_TRY(make_store(folder));
    TemplateMaker maker = GM_TRY(begin_template(folder, parent_of(options), to_maker_options(options)));
    if (!options.parent.empty()) {
        const auto parent = GM_TRY(Template::open(parent_of(options)));
        if (memory.size() != parent->manifest().regions.size())
            return Error{Errc::invalid_argument,
                         fmt::format("--memory: {} regions are given, and the parent has {}", memory.size(),
                                     parent->manifest().regions.size())};
    }
    for (const MemoryWords& words : memory) GM_TRY(add_memory(maker, words));
    if (!options.state.empty()) {
        const std::string state = GM_TRY(read_text_file(options.state, max_state_file_bytes));
        GM_TRY(maker.set_state(std::as_bytes(std::span{state})));
    }
    for (const std::string& note : options.notes) {
        const std::size_t equals = note.find('=');
        maker.set_provenance(note.substr(0, equals),
                             equals == std::string::npos ? "" : note.substr(equals + 1));
    }
    return std::move(maker).commit();
}

int run(const MakeOptions& options) {
    if (options.memory.empty() == options.qemu.empty()) {
        fmt::print(stderr, "guestmem: either --memory or --qemu says where the memory is\n");
        return exit_usage;
    }
    std::vector<MemoryWords> memory;
    for (const std::string& text : options.memory) {
        auto words = parse_memory(text);
        if (!words) {
            fmt::print(stderr, "guestmem: --memory {}: {}\n", to_printable(text),
                       to_printable(words.error().message()));
            return exit_usage;
        }
        memory.push_back(*std::move(words));
    }
    const auto made =
        options.qemu.empty()
            ? make(options, memory)
            : make_from_qemu(options.qemu, {.folder = template_folder(options.store, options.name),
                                            .parent = parent_of(options),
                                            .maker = to_maker_options(options),
                                            .notes = options.notes});
    if (!made) return report(made.error());
    if (options.json)
        print(to_text(*made));
    else if (made->parent)
        print(fmt::format("{}: {} of memory, {} of it other than in {}, id {}\n", options.name,
                          format_qemu_size(made->image_bytes),
                          format_qemu_size(made->parent->count_pages * page_size_bytes), made->parent->name,
                          made->id));
    else
        print(fmt::format("{}: {} of memory, {} stored, id {}\n", options.name,
                          format_qemu_size(made->image_bytes),
                          format_qemu_size(made->data_pages * page_size_bytes), made->id));
    return exit_ok;
}

void add_options(CLI::App& app, MakeOptions& options) {
    app.add_option("NAME", options.name, "A name in the store, or the path of a folder to be")->required();
    app.add_option("--memory", options.memory,
                   "FILE[,name=NAME][,at=GUEST-ADDRESS][,offset=N][,size=N][,rom]: the bytes of a region");
    auto* const state =
        app.add_option("--state", options.state, "What the VMM wants to find again: devices, registers");
    app.add_option("--qemu", options.qemu, "The QMP socket of a QEMU that runs")->excludes(state);
    app.add_option("--note", options.notes, "KEY=VALUE, kept in the manifest: where it comes from");
    add_compress_option(app, options.compression_level);
    add_store_option(app, options.store);
    app.add_flag("--json", options.json, "Print the manifest");
}

}  // namespace

Action describe_template_make(CLI::App& app) {
    auto options = std::make_shared<MakeOptions>();
    app.footer(
        "Examples:\n"
        "  guestmem template make base --memory /dev/shm/vm1.ram --state vm1.state\n"
        "  guestmem template make base --memory low.ram,name=low --memory high.ram,name=high,at=4G\n"
        "  guestmem template make base --qemu /run/vm1.qmp\n"
        "Memory of --memory must not change meanwhile: stop the machine first. --qemu stops the guest of a QEMU whose\n"
        "RAM is one shared file, takes its memory and devices, and lets it go on. A template exists whole or not at "
        "all.\n"
        "Exit codes: 0 it is made, 1 it could not be made, 2 wrong words.");
    add_options(app, *options);
    return [options] { return run(*options); };
}

Action describe_template_diff(CLI::App& app) {
    auto options = std::make_shared<MakeOptions>();
    app.footer(
        "Examples:\n"
        "  guestmem template diff day2 --parent base --memory /dev/shm/vm1.ram --state vm1.state\n"
        "  guestmem template diff day2 --parent base --qemu /run/vm1.qmp\n"
        "A template of which only the pages are stored that are not those of its parent, which has to have the same\n"
        "regions. Memory is compared page by page. The parent stays as long as there are differences to it; \n"
        "`guestmem template flatten` makes a template that needs no parent.\n"
        "Exit codes: 0 it is made, 1 it could not be made, 2 wrong words.");
    app.add_option("--parent", options->parent,
                   "The template with which memory is compared, in the same store")
        ->required();
    add_options(app, *options);
    return [options] { return run(*options); };
}

}  // namespace guestmem::cli
