// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <csignal>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/cli/exit_codes.hpp"
#include "guestmem/cli/progress_bar.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/cli/template_commands.hpp"
#include "guestmem/cli/template_offer.hpp"
#include "guestmem/cli/template_store.hpp"
#include "guestmem/mem/backends/size_text.hpp"
#include "guestmem/mem/paging/page_frame.hpp"
#include "guestmem/mem/paging/stream_source.hpp"
#include "guestmem/mem/paging/stream_writer.hpp"
#include "guestmem/mem/template/maker.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/mem/template/template_source.hpp"
#include "guestmem/sys/deadline.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::cli {
namespace {

constexpr int standard_input = 0;
constexpr FdView standard_output{1};

struct StreamOptions {
    std::string name;
    std::string store;
    int compression_level = 0;
    double patience_s = 30;
    bool json = false;
};

Result<void> send(const StreamOptions& options) {
    // A reader that goes is an error, and no end of this process.
    std::signal(SIGPIPE, SIG_IGN);
    const auto opened = GM_TRY(Template::open(template_folder(options.store, options.name)));
    const auto source = GM_TRY(TemplateSource::open(opened));
    const PageOffer offer = GM_TRY(offer_of(*opened, options.compression_level));
    ProgressBar bar{options.name, source->size_bytes()};
    GM_TRY(write_stream(standard_output, *source, offer, [&](std::uint64_t done) { bar.show(done); }));
    return {};
}

int run_send(const StreamOptions& options) {
    if (is_stdout_terminal()) {
        fmt::print(stderr, "guestmem: a stream of pages is nothing for a terminal: redirect it\n");
        return exit_usage;
    }
    const auto sent = send(options);
    return sent ? exit_ok : report(sent.error());
}

/// Of pages behind the last one.
class NoMore final : public PageSink {
public:
    Result<void> take_pages(std::uint64_t offset_bytes, std::span<const std::byte>) override {
        return take_zeros({offset_bytes, 0});
    }
    Result<void> take_zeros(ImagePart part) override {
        return Error{Errc::corrupt, fmt::format("pages at {} come behind all pages", part.offset_bytes)};
    }
};

/// What says that the stream is whole.
Result<void> read_end(StreamSource& source, std::chrono::milliseconds patience) {
    NoMore sink;
    const Deadline deadline{patience};
    while (!source.is_complete()) {
        if (!GM_TRY(wait_readable(source.arrivals(), deadline)) || deadline.has_passed())
            return Error{Errc::timed_out,
                         fmt::format("the end of the stream does not come within {} ms", patience.count())};
        GM_TRY(source.take_arrivals(sink));
    }
    return {};
}

Result<Manifest> receive(const StreamOptions& options) {
    const std::string folder = template_folder(options.store, options.name);
    GM_TRY(make_store(folder));
    MakerOptions maker_options;
    if (options.compression_level != 0)
        maker_options = {.encoding = ImageEncoding::zstd, .compression_level = options.compression_level};
    TemplateMaker maker = GM_TRY(TemplateMaker::begin(folder, maker_options));
    std::vector<std::byte> state;
    ReceiveOptions receiving;
    receiving.patience = std::chrono::milliseconds{static_cast<std::int64_t>(options.patience_s * 1000)};
    receiving.take_state = [&](std::span<const std::byte> bytes) -> Result<void> {
        state.insert(state.end(), bytes.begin(), bytes.end());
        return {};
    };
    const auto patience = receiving.patience;
    const auto source = GM_TRY(StreamSource::open(Fd{standard_input}, std::move(receiving)));
    const Manifest sent = GM_TRY(manifest_of(source->greeting()));
    {
        ProgressBar bar{options.name, source->size_bytes()};
        GM_TRY(maker.add_source(sent.regions, *source, [&](std::uint64_t done) { bar.show(done); }));
    }
    GM_TRY(read_end(*source, patience));
    if (!state.empty()) GM_TRY(maker.set_state(state));
    for (const auto& [key, value] : sent.provenance) maker.set_provenance(key, value);
    // A template that is full of notes comes without this one.
    if (sent.provenance.size() < max_provenance_entries)
        maker.set_provenance("received.id", to_string(source->greeting().id));
    return std::move(maker).commit();
}

int run_receive(const StreamOptions& options) {
    const auto made = receive(options);
    if (!made) return report(made.error());
    if (options.json)
        print(to_text(*made));
    else
        print(fmt::format("{}: {} of memory, {} stored, id {}\n", options.name,
                          format_qemu_size(made->image_bytes),
                          format_qemu_size(made->data_pages * page_size_bytes), made->id));
    return exit_ok;
}

}  // namespace

Action describe_template_send(CLI::App& app) {
    auto options = std::make_shared<StreamOptions>();
    app.footer(
        "Example: guestmem template send base --compress | ssh other guestmem template receive base\n"
        "Writes all of a template to standard output: its manifest, its state, its pages. docs/protocols/pages.md has\n"
        "the format. Exit codes: 0 all is written, 1 it could not be written, 2 wrong words.");
    app.add_option("NAME", options->name, "A template in the store, or the path of its folder")->required();
    add_compress_option(app, options->compression_level);
    add_store_option(app, options->store);
    return [options] { return run_send(*options); };
}

Action describe_template_receive(CLI::App& app) {
    auto options = std::make_shared<StreamOptions>();
    app.footer(
        "Example: guestmem template receive base < base.pages\n"
        "Makes a template of what `guestmem template send` writes, with an id of its own; it exists whole or not at\n"
        "all. Pages are checked on the way.\n"
        "Exit codes: 0 it is made, 1 it could not be made, 2 wrong words, 3 nothing came for too long.");
    app.add_option("NAME", options->name, "A name in the store, or the path of a folder to be")->required();
    add_compress_option(app, options->compression_level);
    app.add_option("--patience", options->patience_s, "Seconds that the next 64 MiB may take")
        ->check(CLI::Range(0.01, 86400.0))
        ->capture_default_str();
    add_store_option(app, options->store);
    app.add_flag("--json", options->json, "Print the manifest");
    return [options] { return run_receive(*options); };
}

}  // namespace guestmem::cli
