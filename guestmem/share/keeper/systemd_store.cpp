// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/keeper/systemd_store.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <limits>
#include <string_view>
#include <utility>
#include <vector>

#include "guestmem/sys/host.hpp"
#include "guestmem/sys/seqpacket_socket.hpp"
#include "guestmem/sys/service_manager.hpp"

namespace guestmem::share {
namespace {

constexpr int barrier_ms = 20'000;
/// "d3.1f" and what separates it: names have at most that, as long as their numbers have up to four digits in all.
constexpr std::size_t usual_name_bytes = 7;

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
    if (keys_.try_emplace(key).second) name_bytes_ += bytes_of(to_name(key));
}

void SystemdStore::drop(const KeptKey& key) {
    if (keys_.erase(key) != 0) name_bytes_ -= bytes_of(to_name(key));
}

/// Sockets and memory have an inode of their own, eventfds a number; nothing else is kept.
std::optional<SystemdStore::Identity> SystemdStore::identity_of(FdView fd) {
    const auto facts = file_facts(fd);
    if (!facts) return std::nullopt;
    Identity identity{.device = facts->device, .inode = facts->inode, .is_writable = facts->is_writable};
    if (facts->is_socket || facts->is_regular) return identity;
    constexpr std::size_t limit_bytes = 4096;
    constexpr std::string_view word = "eventfd-id:";
    const auto text = read_text_file(fmt::format("/proc/self/fdinfo/{}", fd.number()), limit_bytes);
    const std::size_t at = text ? text->find(word) : std::string::npos;
    if (at == std::string::npos) return std::nullopt;
    const std::size_t begin = text->find_first_not_of(" \t", at + word.size());
    if (begin == std::string::npos) return std::nullopt;
    const auto [rest, status] =
        std::from_chars(text->data() + begin, text->data() + text->size(), identity.eventfd);
    if (status != std::errc{}) return std::nullopt;
    return identity;
}

Result<void> SystemdStore::keep(std::span<const KeepRequest> requests) {
    for (const KeepRequest& request : requests) GM_TRY(keep_one(request));
    return {};
}

Result<void> SystemdStore::check_names(std::size_t more_bytes) const {
    if (options_.foreign_bytes + name_bytes_ + more_bytes <= max_passed_names_bytes) return {};
    return Error{Errc::exhausted, ENOSPC,
                 fmt::format("the service manager stores {} descriptors, and the names of more do not fit "
                             "into $LISTEN_FDNAMES ({} bytes): use a keeper, or fewer slots and vectors",
                             keys_.size(), max_passed_names_bytes)};
}

Result<void> SystemdStore::check_room(std::size_t count) const {
    GM_TRY(check_count(count));
    return check_names(count * usual_name_bytes);
}

Result<void> SystemdStore::check_count(std::size_t count) const {
    const std::size_t most =
        options_.most_fds == 0 ? std::numeric_limits<std::size_t>::max() : options_.most_fds;
    if (count > most - std::min(most, keys_.size()))
        return Error{Errc::exhausted, ENOSPC,
                     fmt::format("the service manager stores {} descriptors, {} more do not fit, and the "
                                 "unit's limit is {}: raise FileDescriptorStoreMax=",
                                 keys_.size(), count, most)};
    return {};
}

Result<void> SystemdStore::keep_one(const KeepRequest& request) {
    const std::string name = to_name(request.key);
    const Stored fresh{.identity = identity_of(request.fd), .is_given = true};
    if (const auto found = keys_.find(request.key); found != keys_.end()) {
        const Stored& known = found->second;
        if (known.is_given && known.identity && known.identity == fresh.identity) return {};
        GM_TRY(remove_stored_descriptors(name));
        drop(request.key);
    } else {
        GM_TRY(check_count(1));
        GM_TRY(check_names(bytes_of(name)));
    }
    GM_TRY(store_descriptor(name, request.fd));
    remember(request.key);
    keys_[request.key] = fresh;
    return {};
}

Result<void> SystemdStore::forget(std::span<const KeptKey> keys) {
    for (const KeptKey& key : keys) {
        if (!keys_.contains(key)) continue;
        GM_TRY(remove_stored_descriptors(to_name(key)));
        drop(key);
    }
    return {};
}

Result<void> SystemdStore::forget_rest() {
    std::vector<KeptKey> rest;
    for (const auto& [key, stored] : keys_)
        if (!stored.is_given) rest.push_back(key);
    return forget(rest);
}

Result<void> SystemdStore::sync() { return wait_for_manager(barrier_ms); }

Result<void> SystemdStore::end() {
    std::vector<KeptKey> all;
    for (const auto& [key, stored] : keys_) all.push_back(key);
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
