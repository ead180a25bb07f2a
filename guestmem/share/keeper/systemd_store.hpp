// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "guestmem/share/keeper/inheritance.hpp"
#include "guestmem/share/keeper/keeper.hpp"

/// The service manager's descriptor store as the keeper.
///
/// Concepts: systemd keeps descriptors of a service while it restarts, crashes and upgrades included, and passes all of
/// them to the next instance; "systemctl stop" lets them go (unless FileDescriptorStorePreserve=). No process of ours
/// is needed. service_manager.hpp is the protocol.
/// The unit needs: Type=notify, NotifyAccess=main, Restart=on-failure (or always), and FileDescriptorStoreMax= with
/// room for every descriptor: for each share 3 + slots x (vectors + 2), and 16. systemd 254 and later tell the number
/// ($FDSTORE); with an earlier one nobody can ask, and the caller has to say that the unit has it.
/// Contract: a name in the store is a key (to_name). A key that is kept again is removed first: between the two
/// messages nobody but this process has the descriptor. One that is kept again unchanged, as this process has stored
/// it, is passed over. end() removes every name of ours.
/// Limits: $FDSTORE descriptors; all names together, with those of activated sockets, have to fit into one string of
/// the environment (128 KiB, about 16,000 names): one more is an error (exhausted), for the next instance could not be
/// started with it.
/// Cost: one message for each descriptor, and systemd compares it with all it has: 5,000 take seconds of its time. A
/// key takes 100 bytes here, and three to six system calls to know its file.
/// Threads: one at a time.
/// Known holes: a socket unit whose FileDescriptorName= looks like a key ("b1.2") is taken for one. A descriptor that
/// the store has under another key is not stored again (systemd compares the open files).

namespace guestmem::share {

/// A version of systemd before 254 does not say whether the unit has a store.
enum class StoreWord : std::uint8_t { of_the_manager, of_the_caller };

class SystemdStore final : public Keeper {
public:
    struct Options {
        std::size_t most_fds = 0;       ///< 0: as many as the names allow
        std::size_t foreign_bytes = 0;  ///< of names that are not ours, with their separators
    };
    explicit SystemdStore(const Options& options) : options_(options) {}

    /// Whether there is a service manager that stores descriptors for this process.
    [[nodiscard]] static bool is_available(StoreWord word = StoreWord::of_the_manager);

    /// What an earlier instance has stored.
    void remember(const KeptKey& key);

    [[nodiscard]] Result<void> keep(std::span<const KeepRequest> requests) override;
    [[nodiscard]] Result<void> forget(std::span<const KeptKey> keys) override;
    [[nodiscard]] Result<void> sync() override;
    [[nodiscard]] Result<void> end() override;
    [[nodiscard]] Result<void> check_room(std::size_t count) const override;
    /// A manager that does not read makes every call wait: once it has returned, it does.
    [[nodiscard]] Result<bool> is_answering() override { return true; }
    [[nodiscard]] Result<void> forget_rest() override;
    [[nodiscard]] FdView gone() const override { return {}; }
    [[nodiscard]] std::string describe() const override { return "service manager"; }

private:
    /// Which open file it is, as far as it can be told; nothing where it cannot.
    struct Identity {
        std::uint64_t device = 0;
        std::uint64_t inode = 0;
        std::uint64_t eventfd = 0;
        bool is_writable = false;
        friend bool operator==(const Identity&, const Identity&) = default;
    };
    struct Stored {
        std::optional<Identity> identity = {};
        bool is_given = false;  ///< by this process
    };
    [[nodiscard]] static std::optional<Identity> identity_of(FdView fd);
    [[nodiscard]] Result<void> keep_one(const KeepRequest& request);
    [[nodiscard]] Result<void> check_count(std::size_t count) const;
    [[nodiscard]] Result<void> check_names(std::size_t more_bytes) const;
    void drop(const KeptKey& key);

    Options options_;
    std::map<KeptKey, Stored> keys_;
    std::size_t name_bytes_ = 0;
};

/// Everything that the service manager passes: kept descriptors, activated sockets, and its store as the keeper where
/// there is one (else no keeper). Once in a process.
[[nodiscard]] Result<Inheritance> inherit_from_service_manager(StoreWord word = StoreWord::of_the_manager);

}  // namespace guestmem::share
