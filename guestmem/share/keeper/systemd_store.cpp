// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/keeper/systemd_store.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <limits>
#include <utility>
#include <vector>

#include "guestmem/sys/seqpacket_socket.hpp"
#include "guestmem/sys/service_manager.hpp"

namespace guestmem::share {
namespace {

constexpr int barrier_ms = 20'000;

/// A name and what separates it from the next.
std::size_t bytes_of(const std::string& name) { return name.size() + 1; }

}  // namespace

bool SystemdStore::is_available(StoreWord word) {
    if (!has_service_manager()) return false;
    const auto limit = descriptor_store_limit();
    if (limit) return *limit > 0;
    return word == StoreWord::of_the_caller;
}

void SystemdStore::remember(const KeptKey& key) {
    if (keys_.insert(key).second) name_bytes_ += bytes_of(to_name(key));
}

Result<void> SystemdStore::keep(std::span<const KeepRequest> requests) {
    for (const KeepRequest& request : requests) GM_TRY(keep_one(request));
    return {};
}

Result<void> SystemdStore::keep_one(const KeepRequest& request) {
    const std::string name = to_name(request.key);
    if (keys_.contains(request.key)) {
        GM_TRY(remove_stored_descriptors(name));
    } else {
        const std::size_t most =
            options_.most_fds == 0 ? std::numeric_limits<std::size_t>::max() : options_.most_fds;
        if (keys_.size() >= most)
            return Error{
                Errc::exhausted, ENOSPC,
                fmt::format("the service manager stores {} descriptors, which is the unit's limit: raise "
                            "FileDescriptorStoreMax=",
                            keys_.size())};
        if (options_.foreign_bytes + name_bytes_ + bytes_of(name) > max_passed_names_bytes)
            return Error{
                Errc::exhausted, ENOSPC,
                fmt::format("the service manager stores {} descriptors, and the names of more do not fit "
                            "into $LISTEN_FDNAMES ({} bytes): use a keeper, or fewer slots and vectors",
                            keys_.size(), max_passed_names_bytes)};
    }
    GM_TRY(store_descriptor(name, request.fd));
    remember(request.key);
    return {};
}

Result<void> SystemdStore::forget(std::span<const KeptKey> keys) {
    for (const KeptKey& key : keys) {
        if (!keys_.contains(key)) continue;
        const std::string name = to_name(key);
        GM_TRY(remove_stored_descriptors(name));
        keys_.erase(key);
        name_bytes_ -= bytes_of(name);
    }
    return {};
}

Result<void> SystemdStore::sync() { return wait_for_manager(barrier_ms); }

Result<void> SystemdStore::end() {
    const std::vector<KeptKey> all{keys_.begin(), keys_.end()};
    GM_TRY(forget(all));
    return sync();
}

Result<Inheritance> inherit_from_service_manager(StoreWord word) {
    Inheritance inheritance;
    std::vector<KeptKey> keys;
    SystemdStore::Options options;
    for (PassedFd& passed : GM_TRY(take_passed_fds())) {
        if (const auto key = parse_kept_name(passed.name)) {
            keys.push_back(*key);
            inheritance.kept.push_back({.key = *key, .fd = std::move(passed.fd)});
            continue;
        }
        options.foreign_bytes += bytes_of(passed.name);
        const FileFacts facts = GM_TRY(file_facts(passed.fd));
        if (!facts.is_socket) {
            inheritance.unknown.push_back(std::move(passed.name));
            continue;
        }
        std::string path = GM_TRY(bound_path(passed.fd));
        inheritance.activated.push_back(
            {.name = std::move(passed.name), .path = std::move(path), .fd = std::move(passed.fd)});
    }
    if (!SystemdStore::is_available(word)) return inheritance;
    options.most_fds = static_cast<std::size_t>(descriptor_store_limit().value_or(0));
    auto store = std::make_unique<SystemdStore>(options);
    for (const KeptKey& key : keys) store->remember(key);
    inheritance.keeper = std::move(store);
    return inheritance;
}

}  // namespace guestmem::share
