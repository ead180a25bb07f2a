// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <memory>
#include <optional>
#include <string>

#include "guestmem/cli/exit_codes.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/cli/template_commands.hpp"
#include "guestmem/cli/template_offer.hpp"
#include "guestmem/cli/template_store.hpp"
#include "guestmem/mem/paging/page_server.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/mem/template/template_source.hpp"
#include "guestmem/sys/event_loop.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/service_manager.hpp"

namespace guestmem::cli {
namespace {

struct ServeOptions {
    std::string name;
    std::string store;
    std::string socket;
    std::string group;
    int compression_level = 0;
};

Result<void> serve(const ServeOptions& options) {
    // A client that goes is an error of its connection.
    std::signal(SIGPIPE, SIG_IGN);
    for (const int signal : {SIGTERM, SIGINT}) GM_TRY(block_signal(signal));
    const auto opened = GM_TRY(Template::open(template_folder(options.store, options.name)));
    const auto source = GM_TRY(TemplateSource::open(opened));
    PageServerOptions server{.path = options.socket};
    server.offer = GM_TRY(offer_of(*opened, options.compression_level));
    if (!options.group.empty()) server.group = GM_TRY(group_id(options.group));
    EventLoop loop = GM_TRY(EventLoop::create());
    const EventSource on_term = GM_TRY(loop.add_signal(SIGTERM, [&] { loop.stop(); }));
    const EventSource on_int = GM_TRY(loop.add_signal(SIGINT, [&] { loop.stop(); }));
    const PageServer running = GM_TRY(PageServer::create(loop, *source, std::move(server)));
    const std::string what = fmt::format("serving {} at {}", options.name, options.socket);
    fmt::print(stderr, "{}\n", to_printable(what));
    if (const auto told = notify_ready(what); !told) report(told.error());
    GM_TRY(loop.run());
    notify_stopping();
    return {};
}

int run(const ServeOptions& options) {
    const auto served = serve(options);
    return served ? exit_ok : report(served.error());
}

}  // namespace

Action describe_template_serve(CLI::App& app) {
    auto options = std::make_shared<ServeOptions>();
    app.footer(
        "Example: guestmem template serve base --socket /run/base.pages\n"
        "         guestmem template fork --from /run/base.pages --fill\n"
        "Gives pages of a template to whoever asks for them, until SIGINT or SIGTERM: this user, root, and --group.\n"
        "docs/protocols/pages.md has the protocol. The template cannot be removed meanwhile.\n"
        "Exit codes: 0 ended by a signal, 1 it cannot be served, 2 wrong words.");
    app.add_option("NAME", options->name, "A template in the store, or the path of its folder")->required();
    app.add_option("--socket", options->socket, "The path of the socket to be")->required();
    app.add_option("--group", options->group, "A group whose members may connect, too");
    add_compress_option(app, options->compression_level);
    add_store_option(app, options->store);
    return [options] { return run(*options); };
}

}  // namespace guestmem::cli
