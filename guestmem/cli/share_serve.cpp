// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>
#include <memory>
#include <optional>

#include "guestmem/base/sizes.hpp"
#include "guestmem/cli/report.hpp"
#include "guestmem/cli/service_log.hpp"
#include "guestmem/cli/share_options.hpp"
#include "guestmem/control/client.hpp"
#include "guestmem/share/config_file.hpp"
#include "guestmem/share/keeper/keeper_link.hpp"
#include "guestmem/share/keeper/systemd_store.hpp"
#include "guestmem/share/service.hpp"
#include "guestmem/sys/daemon.hpp"
#include "guestmem/sys/event_loop.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/privileges.hpp"
#include "guestmem/sys/seccomp_filter.hpp"
#include "guestmem/sys/service_manager.hpp"

namespace guestmem::cli {
namespace {

using share::ServiceConfig;

constexpr const char* stock_socket_path = "/tmp/ivshmem_socket";
constexpr const char* stock_pid_file = "/var/run/ivshmem-server.pid";

/// A configuration, and what there is to say about how it came to be.
struct Plan {
    ServiceConfig config;
    std::vector<std::string> remarks;
};

bool has_stock_words(const ServeOptions& options) {
    return options.stock_socket || options.stock_name || options.stock_folder || options.stock_size ||
           options.stock_vectors;
}

Result<std::uint32_t> parse_mode(const std::string& text) {
    std::uint32_t mode = 0;
    const auto [rest, status] = std::from_chars(text.data(), text.data() + text.size(), mode, 8);
    if (status != std::errc{} || rest != text.data() + text.size() || mode > 0777)
        return Error{Errc::invalid_argument, fmt::format("mode '{}': write octal digits, as in 0660", text)};
    return mode;
}

Result<std::uint32_t> within(std::string_view what, std::uint64_t value, std::uint64_t most) {
    if (value > most) return Error{Errc::out_of_range, fmt::format("{} {}: at most {}", value, what, most)};
    return static_cast<std::uint32_t>(value);
}

Result<share::QuickOptions> common_options(const ServeOptions& options, std::uint64_t vectors) {
    share::QuickOptions quick;
    quick.share.vectors = GM_TRY(within("vectors", vectors, share::max_vectors));
    quick.share.slots =
        GM_TRY(within("slots", options.slots.value_or(share::default_slots), share::max_slots));
    quick.share.ids = options.ids == "classic" ? share::IdPolicy::classic : share::IdPolicy::stable;
    quick.control = options.control;
    // The stock server's memory outlives its clients.
    quick.share.is_kept = options.is_kept || options.quick.empty();
    quick.socket_mode = GM_TRY(parse_mode(options.socket_mode));
    return quick;
}

Result<Plan> quick_plan(const ServeOptions& options) {
    share::QuickOptions quick = GM_TRY(common_options(options, options.vectors));
    quick.share.name = options.quick;
    quick.share.size_bytes = GM_TRY(parse_size(options.size));
    quick.socket = options.socket;
    return Plan{GM_TRY(share::quick_config(quick)), {}};
}

/// Sizes as the stock server takes them: rounded up to a power of two, at least a page.
std::uint64_t stock_size(std::uint64_t asked, std::vector<std::string>& remarks) {
    const std::uint64_t size = share::extent_of(std::min(asked, share::max_size_bytes));
    if (size != asked) remarks.push_back(fmt::format("-l {}: rounded up to {} bytes", asked, size));
    return size;
}

Result<Plan> stock_plan(const ServeOptions& options) {
    Plan plan;
    share::QuickOptions quick = GM_TRY(common_options(options, options.stock_vectors.value_or(1)));
    quick.socket = options.stock_socket.value_or(stock_socket_path);
    quick.share.name = options.stock_name.value_or("ivshmem");
    if (quick.share.name.starts_with('/')) quick.share.name.erase(0, 1);
    if (options.stock_name)
        plan.remarks.push_back(
            fmt::format("-M only names the share '{}': its memory is sealed and has no file under "
                        "/dev/shm",
                        quick.share.name));
    const std::uint64_t asked = GM_TRY(parse_size(options.stock_size.value_or("4M")));
    if (asked == 0) return Error{Errc::invalid_argument, "-l 0: a share needs memory; write at least 4096"};
    if (asked > share::max_size_bytes)
        return Error{Errc::out_of_range,
                     fmt::format("-l {}: at most {}", asked, format_size(share::max_size_bytes))};
    quick.share.size_bytes = stock_size(asked, plan.remarks);
    if (options.stock_folder) {
        quick.share.huge_page_bytes = GM_TRY_CONTEXT(huge_page_size_at(*options.stock_folder), "-m");
        if (quick.share.huge_page_bytes != 0 && quick.share.size_bytes % quick.share.huge_page_bytes != 0)
            return Error{Errc::invalid_argument,
                         fmt::format("-l {}: not whole huge pages of {}; the next size is {}", asked,
                                     format_size(quick.share.huge_page_bytes),
                                     *round_up(quick.share.size_bytes, quick.share.huge_page_bytes))};
        plan.remarks.push_back(
            quick.share.huge_page_bytes != 0
                ? fmt::format("-m {}: sealed memory of {} huge pages; no file is made", *options.stock_folder,
                              format_size(quick.share.huge_page_bytes))
                : fmt::format("-m {}: not a hugetlbfs; sealed memory of ordinary pages, no file is made",
                              *options.stock_folder));
    }
    plan.config = GM_TRY(share::quick_config(quick));
    // A drop-in for a server with one socket makes one socket; fixed slots are there for who counts slots.
    if (!options.slots) plan.config.doors.resize(1);
    return plan;
}

Result<ServiceConfig> read_configuration(const ServeOptions& options) {
    ServiceConfig config = GM_TRY(share::read_config_file(options.config));
    if (!options.control.empty()) config.control.socket.path = options.control;
    return config;
}

Result<Plan> make_plan(const ServeOptions& options) {
    if (!options.quick.empty()) return quick_plan(options);
    if (options.config.empty()) return stock_plan(options);
    return Plan{GM_TRY(read_configuration(options)), {}};
}

/// The run-time folder is ours to make when a socket stands in it; every other folder is its owner's.
Result<void> make_runtime_folder(const ServiceConfig& config, const std::string& folder) {
    const auto stands_in_it = [&](const ListenOptions& socket) {
        return parent_folder(socket.path) == folder;
    };
    const bool is_needed = stands_in_it(config.control.socket) ||
                           std::ranges::any_of(config.doors, stands_in_it, &share::DoorConfig::socket) ||
                           std::ranges::any_of(config.vms, [&](const share::VmConfig& vm) {
                               return vm.socket && stands_in_it(*vm.socket);
                           });
    if (is_needed && !is_folder(folder)) return make_folder(folder);
    return {};
}

std::string counted(std::size_t count, std::string_view what) {
    return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
}

std::string describe(const ServiceConfig& config) {
    std::string names;
    for (const share::ShareConfig& share : config.shares)
        names += fmt::format("{}'{}' ({}, {}, {})", names.empty() ? "" : ", ", share.name,
                             format_size(share.size_bytes), counted(share.vectors, "vector"),
                             counted(share.slots, "slot"));
    return fmt::format("{}; {}; control socket {}", names, counted(config.doors.size(), "socket"),
                       config.control.socket.path);
}

void warn_of_shares_without_a_socket(const ServiceConfig& config, Log& log) {
    for (const share::ShareConfig& share : config.shares)
        if (std::ranges::count(config.doors, share.name, &share::DoorConfig::share) == 0)
            log.write(LogLevel::warning,
                      fmt::format(
                          "share '{}' has no ivshmem socket: only programs that attach by its name reach it",
                          share.name));
}

/// The service that runs there gives way; who waits for it is served by this one.
Result<void> retire_running(const ServiceConfig& config) {
    auto client = control::Client::connect(config.control.socket.path);
    if (!client) return {};
    static_cast<void>(GM_TRY_CONTEXT(client->call("share.retire", "{}"), "the service that runs"));
    return {};
}

bool is_manager_the_keeper(const ServeOptions& options) {
    return !options.keeper || *options.keeper == "manager";
}

Result<share::ServiceOptions> prepare_life(const ServiceConfig& config, const ServeOptions& options) {
    share::ServiceOptions how;
    if (is_manager_the_keeper(options)) {
        how.inheritance = GM_TRY(share::inherit_from_service_manager(
            options.keeper ? share::StoreWord::of_the_caller : share::StoreWord::of_the_manager));
        return how;
    }
    share::KeeperJoinOptions keeper{.path = *options.keeper};
    if (keeper.path.empty()) keeper.path = config.control.socket.path + ".keeper";
    if (!config.user.empty()) keeper.users.push_back(GM_TRY(user_id(config.user)));
    how.inheritance = GM_TRY(share::join_keeper(keeper));
    // In the service's loop: what does not go at once is tried again later.
    constexpr std::chrono::milliseconds revival_patience{250};
    share::KeeperJoinOptions again = keeper;
    again.patience = revival_patience;
    again.drops_privileges = false;
    again.users.push_back(own_user());
    how.revive_keeper = [again]() -> Result<std::unique_ptr<share::Keeper>> {
        share::Inheritance another = GM_TRY(share::join_keeper(again));
        return std::move(another.keeper);
    };
    return how;
}

/// From here on the process makes no sockets of others and starts no programs.
Result<void> enter_sandbox(const std::string& user, const ServeOptions& options, Log& log) {
    GM_TRY(drop_privileges(user));
    if (options.has_no_sandbox) return {};
    GM_TRY(harden_process());
    if (const auto obstacle = find_filter_obstacle()) {
        log.write(LogLevel::debug, "no filter of system calls: " + *obstacle);
        return {};
    }
    // A reload may bring shares in files.
    return install_service_filter({.answer = FilterAnswer::kill, .may_make_files = !options.config.empty()});
}

Result<void> serve(Plan plan, const ServeOptions& options, Log& log) {
    const bool goes_to_background = !options.foreground && has_stock_words(options);
    std::optional<BackgroundStart> background;
    if (goes_to_background) background = GM_TRY(BackgroundStart::detach());

    for (const std::string& remark : plan.remarks) log.write(LogLevel::info, remark);
    raise_descriptor_limit();
    warn_of_shares_without_a_socket(plan.config, log);
    const std::string user = plan.config.user;
    // Of who was called, and made by whom the service becomes: it removes its sockets when it ends.
    const std::string folder = runtime_folder();
    // As who was called: the service listens to root.
    if (options.is_upgrade) GM_TRY(retire_running(plan.config));
    GM_TRY(take_user(user));
    GM_TRY(make_runtime_folder(plan.config, folder));
    // A log whose reader has gone is no reason to end.
    std::signal(SIGPIPE, SIG_IGN);
    for (const int signal : {SIGTERM, SIGINT, SIGHUP}) GM_TRY(block_signal(signal));
    EventLoop loop = GM_TRY(EventLoop::create());
    const EventSource on_term = GM_TRY(loop.add_signal(SIGTERM, [&] { loop.stop(); }));
    const EventSource on_int = GM_TRY(loop.add_signal(SIGINT, [&] { loop.stop(); }));

    const std::string description = describe(plan.config);
    std::optional<share::Service> service;
    share::ServiceOptions how = GM_TRY(prepare_life(plan.config, options));
    const bool is_held_by_manager = how.inheritance.keeper != nullptr && is_manager_the_keeper(options);
    how.on_retired = [&] { loop.stop(); };
    if (!options.config.empty()) how.reread = [&] { return read_configuration(options); };
    service.emplace(GM_TRY(share::Service::create(loop, log, std::move(plan.config), std::move(how))));
    const EventSource on_hangup = GM_TRY(loop.add_signal(SIGHUP, [&] {
        // The service has said what is wrong.
        static_cast<void>(service->reload().has_value());
    }));
    PidFile pid_file;
    if (options.pid_file || goes_to_background)
        pid_file = GM_TRY(PidFile::create(options.pid_file.value_or(stock_pid_file)));
    GM_TRY(enter_sandbox(user, options, log));
    log.write(LogLevel::info, "ready: " + description);
    // A manager that does not listen any more is no reason to leave the clients.
    if (const auto told = notify_ready(description); !told)
        log.write(LogLevel::warning, told.error().message());
    if (background) GM_TRY(background->announce_ready());
    GM_TRY(loop.run());
    notify_stopping();
    // Whether this is a restart is the service manager's knowledge: it lets go of what it holds when it is none.
    if (is_held_by_manager) GM_TRY(service->retire());
    return {};
}

}  // namespace

int share_serve(const ServeOptions& options) {
    if (options.config.empty() && options.quick.empty() && !has_stock_words(options) && !options.foreground) {
        fmt::print(stderr,
                   "guestmem: serve what? Give --config FILE, --quick NAME, or the stock server's options\n");
        return exit_usage;
    }
    auto plan = make_plan(options);
    if (!plan) {
        // What is wrong with a file begins with its name; everything else with the program's.
        const bool has_place = !options.config.empty() && plan.error().code() == Errc::invalid_argument;
        fmt::print(stderr, "{}{}\n", has_place ? "" : "guestmem: ", plan.error().message());
        const bool is_world = plan.error().os_error() != 0;
        return is_world ? exit_failed : exit_usage;
    }
    if (options.is_upgrade && !options.keeper) {
        fmt::print(stderr,
                   "guestmem: --upgrade needs the --keeper of the service that runs: who else would hold its "
                   "clients meanwhile?\n");
        return exit_usage;
    }
    if (options.only_check) {
        fmt::print("{}\n", describe(plan->config));
        return exit_ok;
    }
    const auto log = make_service_log("guestmem-share", options.verbose);
    const auto status = serve(std::move(*plan), options, *log);
    return status ? exit_ok : report(status.error());
}

}  // namespace guestmem::cli
