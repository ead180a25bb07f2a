// SPDX-License-Identifier: Apache-2.0
/// guestmem/share.h over Session and HostShm. What is thrown below (want of memory) ends here.
#include <guestmem/share.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "guestmem/share/host_shm.hpp"
#include "guestmem/share/session.hpp"

using guestmem::Errc;
using guestmem::Error;
using guestmem::MapAccess;
using guestmem::Mapping;
using guestmem::Result;
using guestmem::share::HostShm;
using guestmem::share::Kick;
using guestmem::share::PeerNotice;
using guestmem::share::RingStyle;
using guestmem::share::Session;
using guestmem::share::SessionChanges;
using guestmem::share::SessionOptions;
using guestmem::share::WaitOutcome;

struct gm_share_session {
    Session session;
    std::deque<Kick> kicks = {};  ///< those that had no room in the last call
    std::deque<PeerNotice> notices = {};
};

struct gm_share_mapping {
    Mapping mapping;
};

struct gm_host_shm {
    HostShm shm;
    std::string name = {};
};

namespace {

static_assert(GM_SHARE_INVALID_ARGUMENT == static_cast<int>(Errc::invalid_argument) + 1);
static_assert(GM_SHARE_NOT_FOUND == static_cast<int>(Errc::not_found) + 1);
static_assert(GM_SHARE_EXHAUSTED == static_cast<int>(Errc::exhausted) + 1);
static_assert(GM_SHARE_CORRUPT == static_cast<int>(Errc::corrupt) + 1);
static_assert(GM_SHARE_IO == static_cast<int>(Errc::io) + 1);
static_assert(GM_HOST_SHM_PAGE_BYTES == guestmem::share::host_shm_page_bytes);
static_assert(GM_HOST_SHM_POKE_ALL == guestmem::share::host_shm_poke_all);
static_assert(GM_HOST_SHM_POKE_ALL_BUT_ME == guestmem::share::host_shm_poke_all_but_me);

/// Sizes of the option structs in version 1.0: no program has smaller ones.
constexpr std::size_t first_options_bytes = 56;
constexpr std::size_t first_facts_bytes = 72;
static_assert(sizeof(void*) != 8 || sizeof(gm_share_options) == first_options_bytes);
static_assert(sizeof(void*) != 8 || sizeof(gm_share_facts) == first_facts_bytes);
/// A struct_size beyond this was not initialized.
constexpr std::size_t max_struct_bytes = 4096;
constexpr std::uint32_t default_timeout_ms = 10'000;
constexpr std::uint32_t known_flags = GM_SHARE_CREATE | GM_SHARE_READ_ONLY | GM_SHARE_ACCEPT_UNSEALED |
                                      GM_SHARE_NO_REATTACH | GM_SHARE_RING_NEVER_WAITS | GM_SHARE_WANT_SLOT;

/// Of a fixed size: saying that there is no memory takes none.
struct LastError {
    std::array<char, 1024> text{};
    int os_error = 0;
};
thread_local LastError last_error;

void remember(std::string_view text, int os_error) noexcept {
    const std::size_t count = std::min(text.size(), last_error.text.size() - 1);
    std::memcpy(last_error.text.data(), text.data(), count);
    last_error.text[count] = '\0';
    last_error.os_error = os_error;
}

struct Status {
    int code = GM_SHARE_OK;
    int os_error = 0;
};

/// Every call's way out: a value, an error or an exception becomes numbers and a sentence.
template <typename Function>
Status answer(Function&& function) noexcept {
    try {
        const Result<void> done = function();
        if (done) return {};
        const Error& error = done.error();
        remember(error.message(), error.os_error());
        return {static_cast<int>(error.code()) + 1, error.os_error() != 0 ? error.os_error() : EIO};
    } catch (const std::bad_alloc&) {
        remember("no memory", ENOMEM);
        return {GM_SHARE_EXHAUSTED, ENOMEM};
    } catch (const std::length_error&) {
        remember("more memory than there can be", ENOMEM);
        return {GM_SHARE_EXHAUSTED, ENOMEM};
    } catch (const std::exception& problem) {
        remember(problem.what(), 0);
        return {GM_SHARE_IO, EIO};
    } catch (...) {
        remember("an unknown exception", 0);
        return {GM_SHARE_IO, EIO};
    }
}

Error wrong(const char* what) { return Error{Errc::invalid_argument, EINVAL, what}; }

Result<gm_share_options> read_options(const gm_share_options* given) {
    if (given == nullptr) return wrong("gm_share_options: null");
    if (given->struct_size < std::min(first_options_bytes, sizeof(gm_share_options)) ||
        given->struct_size > max_struct_bytes)
        return wrong("gm_share_options.struct_size is no size of it: begin with GM_SHARE_OPTIONS_INIT");
    gm_share_options options = GM_SHARE_OPTIONS_INIT;
    std::memcpy(&options, given, std::min(given->struct_size, sizeof options));
    const std::span whole{reinterpret_cast<const std::byte*>(given), given->struct_size};
    const std::span rest = whole.subspan(std::min(whole.size(), sizeof options));
    const bool has_unknown = std::ranges::any_of(rest, [](std::byte byte) { return byte != std::byte{0}; });
    if (has_unknown || options.reserved != 0 || (options.flags & ~known_flags) != 0)
        return Error{Errc::unsupported, ENOTSUP,
                     "gm_share_options: an option that this library does not know"};
    return options;
}

Result<SessionOptions> session_options(const gm_share_options* given) {
    const gm_share_options options = GM_TRY(read_options(given));
    if (options.share == nullptr) return wrong("gm_share_options.share: null; name a share");
    const auto has = [&](std::uint32_t flag) { return (options.flags & flag) != 0; };
    SessionOptions wanted{.share = options.share};
    if (options.control != nullptr) wanted.control = options.control;
    wanted.may_create = has(GM_SHARE_CREATE);
    wanted.size_bytes = options.size_bytes;
    wanted.vectors = options.vectors;
    wanted.slots = options.slots;
    if (has(GM_SHARE_WANT_SLOT)) wanted.slot = options.slot;
    wanted.access = has(GM_SHARE_READ_ONLY) ? MapAccess::read_only : MapAccess::read_write;
    wanted.timeout_ms = options.timeout_ms != 0 ? options.timeout_ms : default_timeout_ms;
    wanted.ring = has(GM_SHARE_RING_NEVER_WAITS) ? RingStyle::never_waits : RingStyle::one_write;
    wanted.may_be_unsealed = has(GM_SHARE_ACCEPT_UNSEALED);
    wanted.may_reattach = !has(GM_SHARE_NO_REATTACH);
    return wanted;
}

std::uint32_t events_of(const SessionChanges& changes) {
    std::uint32_t events = 0;
    if (changes.has_presence_changed) events |= GM_SHARE_PRESENCE;
    if (changes.is_reattached) events |= GM_SHARE_REATTACHED;
    if (changes.is_lost) events |= GM_SHARE_LOST;
    return events;
}

/// Takes what fits from the front of a queue.
template <typename From, typename To, typename Convert>
std::size_t hand_out(std::deque<From>& queue, To* to, std::size_t room, Convert&& convert) {
    std::size_t count = 0;
    for (; to != nullptr && count < room && !queue.empty(); ++count) {
        to[count] = convert(queue.front());
        queue.pop_front();
    }
    return count;
}

Result<void> wait_for(gm_share_session& handle, std::span<const std::uint32_t> vectors, std::uint32_t wanted,
                      int timeout_ms, std::uint32_t& events) {
    // What had no room in the last call is told before anything is waited for.
    WaitOutcome woken = GM_TRY(handle.session.wait({.vectors = vectors,
                                                    .timeout_ms = handle.kicks.empty() ? timeout_ms : 0,
                                                    .is_for_changes = (wanted & GM_SHARE_PRESENCE) != 0}));
    for (const Kick& kick : woken.kicks) handle.kicks.push_back(kick);
    events = events_of(woken.changes);
    if (!handle.kicks.empty()) events |= GM_SHARE_KICKED;
    return {};
}

template <typename T>
void put(T* to, T value) {
    if (to != nullptr) *to = value;
}

}  // namespace

uint32_t gm_share_abi_version(void) { return GM_SHARE_ABI_MAJOR << 16 | GM_SHARE_ABI_MINOR; }

const char* gm_share_last_error(void) { return last_error.text.data(); }
int gm_share_last_errno(void) { return last_error.os_error; }

int gm_share_attach(const gm_share_options* options, gm_share_session** session) {
    return answer([&]() -> Result<void> {
               if (session == nullptr) return wrong("gm_share_attach: no place for the session");
               Session attached = GM_TRY(Session::attach(GM_TRY(session_options(options))));
               *session = new gm_share_session{.session = std::move(attached)};
               return {};
           })
        .code;
}

void gm_share_close(gm_share_session* session) { delete session; }

int gm_share_get_facts(const gm_share_session* session, gm_share_facts* facts) {
    return answer([&]() -> Result<void> {
               if (session == nullptr || facts == nullptr) return wrong("gm_share_get_facts: null");
               if (facts->struct_size < std::min(first_facts_bytes, sizeof(gm_share_facts)) ||
                   facts->struct_size > max_struct_bytes)
                   return wrong(
                       "gm_share_facts.struct_size is no size of it: begin with GM_SHARE_FACTS_INIT");
               const auto& known = session->session.facts();
               gm_share_facts found = GM_SHARE_FACTS_INIT;
               found.struct_size = facts->struct_size;
               found.size_bytes = known.size_bytes;
               found.extent_bytes = known.extent_bytes;
               found.generation = session->session.generation();
               found.memory_generation = session->session.memory_generation();
               found.presence_changes = session->session.presence_changes();
               found.slot = known.slot;
               found.vectors = known.vectors;
               found.slots = known.slots;
               found.was_created = known.was_created;
               found.may_notify = known.may_notify;
               found.is_read_only = known.is_read_only;
               found.is_sealed = known.is_sealed;
               found.is_lost = session->session.is_lost();
               std::memcpy(facts, &found, std::min(facts->struct_size, sizeof found));
               return {};
           })
        .code;
}

int gm_share_reattach(gm_share_session* session) {
    return answer([&]() -> Result<void> {
               return session == nullptr ? wrong("gm_share_reattach: null") : session->session.reattach();
           })
        .code;
}

int gm_share_map(const gm_share_session* session, gm_share_mapping** mapping) {
    return answer([&]() -> Result<void> {
               if (session == nullptr || mapping == nullptr) return wrong("gm_share_map: null");
               Mapping mapped = GM_TRY(session->session.map());
               *mapping = new gm_share_mapping{.mapping = std::move(mapped)};
               return {};
           })
        .code;
}

void gm_share_unmap(gm_share_mapping* mapping) { delete mapping; }

void* gm_share_data(const gm_share_mapping* mapping) {
    return mapping == nullptr ? nullptr : mapping->mapping.bytes().data();
}

uint64_t gm_share_size(const gm_share_mapping* mapping) {
    return mapping == nullptr ? 0 : mapping->mapping.bytes().size();
}

int gm_share_peers(const gm_share_session* session, uint32_t* ids, size_t room, size_t* count) {
    return answer([&]() -> Result<void> {
               if (session == nullptr || (ids == nullptr && room != 0)) return wrong("gm_share_peers: null");
               const std::vector<std::uint32_t> peers = session->session.peers();
               std::copy_n(peers.begin(), std::min(room, peers.size()), ids);
               put(count, peers.size());
               return {};
           })
        .code;
}

int gm_share_is_present(const gm_share_session* session, uint32_t peer) {
    return session != nullptr && session->session.is_present(peer) ? 1 : 0;
}

int gm_share_ring(gm_share_session* session, uint32_t peer, uint32_t vector) {
    return answer([&]() -> Result<void> {
               return session == nullptr ? wrong("gm_share_ring: null") : session->session.ring(peer, vector);
           })
        .code;
}

int gm_share_wait(gm_share_session* session, const uint32_t* vectors, size_t count, uint32_t wanted,
                  int timeout_ms, uint32_t* events, gm_share_kick* kicks, size_t kicks_room,
                  size_t* kicks_count) {
    return answer([&]() -> Result<void> {
               if (session == nullptr || (vectors == nullptr && count != 0) ||
                   (kicks == nullptr && kicks_room != 0))
                   return wrong("gm_share_wait: null");
               std::uint32_t found = 0;
               GM_TRY(wait_for(*session, std::span{vectors, count}, wanted, timeout_ms, found));
               // Who gives no room does not want to know which.
               if (kicks_room == 0) session->kicks.clear();
               const auto told = hand_out(session->kicks, kicks, kicks_room, [](const Kick& kick) {
                   return gm_share_kick{.vector = kick.vector, .reserved = 0, .count = kick.count};
               });
               put(events, found);
               put(kicks_count, told);
               return {};
           })
        .code;
}

int gm_share_refresh(gm_share_session* session, uint32_t* events) {
    return answer([&]() -> Result<void> {
               if (session == nullptr) return wrong("gm_share_refresh: null");
               put(events, events_of(GM_TRY(session->session.refresh())));
               return {};
           })
        .code;
}

int gm_share_wait_ready(gm_share_session* session, uint32_t peer, int has_word, uint64_t word_at,
                        int timeout_ms) {
    return answer([&]() -> Result<void> {
               if (session == nullptr) return wrong("gm_share_wait_ready: null");
               const auto word = has_word != 0 ? std::optional{word_at} : std::nullopt;
               if (!GM_TRY(session->session.wait_ready(peer, word, timeout_ms)))
                   return Error{Errc::timed_out, ETIMEDOUT, "the peer was not ready in time"};
               return {};
           })
        .code;
}

int gm_share_take_notices(gm_share_session* session, gm_share_notice* notices, size_t room, size_t* count,
                          int* has_lost) {
    return answer([&]() -> Result<void> {
               if (session == nullptr || (notices == nullptr && room != 0))
                   return wrong("gm_share_take_notices: null");
               bool has_dropped = false;
               if (session->notices.empty())
                   for (const PeerNotice& notice : session->session.take_notices(has_dropped))
                       session->notices.push_back(notice);
               put(count, hand_out(session->notices, notices, room, [](const PeerNotice& notice) {
                       return gm_share_notice{.id = notice.id,
                                              .has_come = static_cast<std::uint8_t>(notice.has_come),
                                              .reserved = {}};
                   }));
               put(has_lost, has_dropped ? 1 : 0);
               return {};
           })
        .code;
}

int gm_share_vector_fd(const gm_share_session* session, uint32_t vector) {
    return session == nullptr ? -1 : session->session.vector_view(vector).number();
}

int gm_share_changes_fd(const gm_share_session* session) {
    return session == nullptr ? -1 : session->session.changes_view().number();
}

int gm_share_any_fd(const gm_share_session* session) {
    return session == nullptr ? -1 : session->session.view().number();
}

int gm_host_shm_create(size_t private_bytes, gm_host_shm** shm) {
    return answer([&]() -> Result<void> {
               if (shm == nullptr) return wrong("gm_host_shm_create: no place for the handle");
               HostShm created = GM_TRY(HostShm::create(private_bytes));
               *shm = new gm_host_shm{.shm = std::move(created)};
               return {};
           })
        .os_error;
}

void gm_host_shm_destroy(gm_host_shm* shm) { delete shm; }

int gm_host_shm_attach(gm_host_shm* shm, const char* control, const char* name, uint32_t size_pages) {
    return answer([&]() -> Result<void> {
               if (shm == nullptr || name == nullptr) return wrong("gm_host_shm_attach: null");
               std::string known = name;
               GM_TRY(
                   shm->shm.attach({.name = known,
                                    .size_pages = size_pages,
                                    .control = control == nullptr ? std::string{} : std::string{control}}));
               shm->name = std::move(known);
               return {};
           })
        .os_error;
}

void gm_host_shm_detach(gm_host_shm* shm) {
    if (shm != nullptr) shm->shm.detach();
}

int gm_host_shm_poke(gm_host_shm* shm, uint32_t bits) {
    return answer([&]() -> Result<void> {
               return shm == nullptr ? wrong("gm_host_shm_poke: null") : shm->shm.poke(bits);
           })
        .os_error;
}

int gm_host_shm_status(gm_host_shm* shm, uint32_t* status) {
    return answer([&]() -> Result<void> {
               if (shm == nullptr || status == nullptr) return wrong("gm_host_shm_status: null");
               *status = GM_TRY(shm->shm.status());
               return {};
           })
        .os_error;
}

int gm_host_shm_wait_status(gm_host_shm* shm, int timeout_ms, uint32_t* status) {
    return answer([&]() -> Result<void> {
               if (shm == nullptr || status == nullptr) return wrong("gm_host_shm_wait_status: null");
               const std::uint32_t found = GM_TRY(shm->shm.wait_status(timeout_ms));
               if (found == 0) return Error{Errc::timed_out, ETIMEDOUT, "the status did not change in time"};
               *status = found;
               return {};
           })
        .os_error;
}

uint32_t gm_host_shm_size(const gm_host_shm* shm) {
    return shm == nullptr ? 0 : static_cast<std::uint32_t>(shm->shm.size_pages());
}

void* gm_host_shm_data(const gm_host_shm* shm) { return shm == nullptr ? nullptr : shm->shm.bytes().data(); }

const char* gm_host_shm_name(const gm_host_shm* shm) {
    return shm == nullptr || !shm->shm.is_attached() ? nullptr : shm->name.c_str();
}

int gm_host_shm_idx(const gm_host_shm* shm) {
    const auto index = shm == nullptr ? std::nullopt : shm->shm.index();
    return index ? static_cast<int>(*index) : -1;
}

int gm_host_shm_fd(const gm_host_shm* shm) { return shm == nullptr ? -1 : shm->shm.view().number(); }

void* gm_host_shm_client(gm_host_shm* shm) {
    return shm == nullptr ? nullptr : shm->shm.private_data().data();
}

int gm_host_shm_has_other_memory(const gm_host_shm* shm) {
    return shm != nullptr && shm->shm.has_other_memory() ? 1 : 0;
}

int gm_host_shm_renew(gm_host_shm* shm) {
    return answer([&]() -> Result<void> {
               return shm == nullptr ? wrong("gm_host_shm_renew: null") : shm->shm.renew();
           })
        .os_error;
}
