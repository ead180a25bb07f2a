// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "guestmem/control/server.hpp"
#include "guestmem/share/desk.hpp"
#include "guestmem/share/legacy.hpp"
#include "guestmem/share/policy.hpp"
#include "guestmem/share/reception.hpp"
#include "guestmem/share/registry.hpp"
#include "guestmem/share/service.hpp"

/// The parts of a service and how they hang together: for service.cpp (birth and end), service_take_over.cpp (what an
/// earlier instance left) and service_reload.cpp (another configuration).
///
/// Lifetime: does not move; the parts hold each other's addresses.
/// Threads: the owner's loop.

namespace guestmem::share {

/// Between two attempts to have a keeper, doubled each time that one fails.
inline constexpr std::uint64_t first_revival_pause_ms = 500;
inline constexpr std::uint64_t longest_revival_pause_ms = 60'000;

class Service::State {
public:
    State(EventLoop& loop, Log& log, ServiceConfig config, ServiceOptions options);
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    ~State();

    [[nodiscard]] Result<void> start();
    [[nodiscard]] Result<std::vector<std::string>> reload();
    [[nodiscard]] Result<void> retire();
    [[nodiscard]] ServiceCounts counts() const;

private:
    /// A control socket: the common one, or a VM's own.
    struct Office {
        std::string vm = {};  ///< empty: the common one
        ListenOptions socket = {};
        std::optional<KeptKey> key = {};
        std::optional<control::Server> server = {};
    };
    /// What a keeper held, and nobody has asked for yet.
    class Heritage {
    public:
        explicit Heritage(std::vector<KeptFd> kept);
        [[nodiscard]] Fd take(const KeptKey& key);
        [[nodiscard]] std::optional<InheritedListener> take_listener(const std::string& path);
        /// In the order of their keys; what is not open was taken.
        [[nodiscard]] std::vector<KeptFd>& kept() { return kept_; }
        [[nodiscard]] std::map<std::string, InheritedListener>& listeners() { return listeners_; }
        /// Nobody will ask for it.
        void give_up(const KeptKey& key) { unwanted_.push_back(key); }
        /// Everything that nobody has asked for.
        [[nodiscard]] std::vector<KeptKey> rest() const;

    private:
        std::vector<KeptFd> kept_;
        std::map<std::string, InheritedListener> listeners_;  ///< by their paths
        std::vector<KeptKey> unwanted_;
    };
    /// What a reload has made and may have to undo.
    struct Undo {
        std::vector<Hall*> made;
        std::vector<std::string> opened;
        std::vector<DoorConfig> changed;  ///< as they were
        std::vector<std::string> offices;
        std::vector<ListenOptions> accesses;  ///< of control sockets, as they were
    };

    [[nodiscard]] Result<void> check_before_anything_is_touched() const;
    [[nodiscard]] Result<void> check_descriptors() const;
    [[nodiscard]] Result<void> make_parts(Journal journal);
    [[nodiscard]] Result<void> open_everything(Heritage& heritage);
    [[nodiscard]] Result<void> open_office(const std::string& vm, const ListenOptions& socket,
                                           std::optional<InheritedListener> inherited);
    void abandon();
    void close_office(const std::string& path);
    [[nodiscard]] Result<std::uint32_t> admit(const DoorConfig& door, Entrant& entrant);
    [[nodiscard]] Result<std::uint32_t> admit_tool(Hall& hall, Entrant entrant);
    [[nodiscard]] Result<void> admit_holder(Hall& hall, Entrant entrant);
    [[nodiscard]] Result<control::Outcome> answer(const Office& office, const PeerCredentials& caller,
                                                  const control::Request& request);
    void warn_of_read_only_doors();
    void wake_tick();
    void tick();
    void wake_chores();
    void do_chores();
    void watch_keeper();
    void revive_keeper();
    /// Whatever the next instance needs, to the keeper.
    void offer_everything();
    void say(LogLevel level, std::string_view text) { limiter_.write(level, text, loop_.now_ms()); }

    // service_take_over.cpp
    [[nodiscard]] Result<Journal> take_journal(Heritage& heritage);
    void take_listeners(Heritage& heritage);
    /// Nothing where its file is not its own any more: one is made anew.
    [[nodiscard]] std::optional<UnixListener> take_listener(Fd fd);
    void take_over_shares(Heritage& heritage);
    void take_over_connections(Heritage& heritage);
    void fit_shares_to_configuration();
    /// Who somebody who came in would be by the configuration of here and now.
    [[nodiscard]] Principal principal_of(const Entrant& entrant) const {
        return entrant.is_tool ? policy_.of_guest(entrant.vm, entrant.who) : Principal{entrant.vm, false};
    }
    [[nodiscard]] bool has_less_right(const Entrant& entrant, const std::string& share) const;
    /// Classic ids of peers that could not be taken over.
    using GonePeers = std::vector<std::pair<Hall*, std::uint32_t>>;
    void take_over_connection(Heritage& heritage, ConnectionRecord& record, GonePeers& gone);
    /// Doorbells that belong to a connection, as the keeper gave them.
    struct ConnectionBells {
        std::vector<KeptKey> keys;
        std::vector<Fd> fds;
        SenderSet receivers;  ///< stable ids: towards whom they are
    };
    [[nodiscard]] static Entrant entrant_of(ConnectionRecord& record);
    [[nodiscard]] static ConnectionBells take_bells(Heritage& heritage, const ConnectionRecord& record,
                                                    const Share& share);
    [[nodiscard]] Result<void> resume(Hall& hall, Entrant& entrant, ConnectionBells bells);
    void forget_orphans(Heritage& heritage);

    // service_reload.cpp
    [[nodiscard]] Result<void> check_reload(const ServiceConfig& next);
    [[nodiscard]] Result<void> make_what_is_new(const ServiceConfig& next, Undo& undo);
    void undo(const Undo& undo);
    void drop_what_is_gone(const ServiceConfig& next, std::vector<std::string>& changes);
    void review_rights(std::vector<std::string>& changes);

    EventLoop& loop_;
    Log& log_;
    LogLimiter limiter_;
    ServiceConfig config_;
    ServiceOptions options_;
    Policy policy_;
    std::optional<Ringer> ringer_;
    std::optional<Legacy> legacy_;
    std::optional<Registry> registry_;
    std::unique_ptr<Reception> reception_;
    std::optional<Desk> desk_;
    std::list<Office> offices_;
    EventSource ticker_;
    EventSource chores_;
    EventSource keeper_gone_;
    std::uint64_t revival_pause_ms_ = first_revival_pause_ms;
    std::uint64_t next_revival_ms_ = 0;
    bool is_ticking_ = false;
    bool is_started_ = false;
    bool is_retired_ = false;
};

/// What the configuration leaves to the service.
void fill_in_limits(ServiceConfig& config);

/// Whether a share of the file is still the one that runs.
[[nodiscard]] bool is_same_share(const ShareConfig& a, const ShareConfig& b);

}  // namespace guestmem::share
