// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/share/session.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/mapping.hpp"

/// The host operations of QNX's hypervisor shared memory on a share of at most 16 slots: create, attach, poke, status,
/// detach, by their names and with their meaning.
///
/// Concepts: a client is a slot, its index the slot's number; guests and host programs share these. Bits 0 to 15 of
/// a status say who poked this client since the last look, bits 16 to 31 who is active. A poke takes a set of
/// indexes: 0xffff is everybody, the caller included, all ones everybody but the caller.
/// Contract: create() makes a handle that is in no share. attach() makes the share when there is none of this name and
/// attaches to it otherwise; then the size is the first maker's, whatever was asked for. Sizes are pages of 4096
/// bytes. status() clears the low half. Pokes do not count: several before a look are one bit. A poke of an index
/// that nobody holds does nothing, bits above 15 mean nothing. Guests that ring without counting (QEMU's) are told
/// apart where the service has a place for that (pair_bells.hpp), and have no bit elsewhere. The memory is bytes(),
/// without a control page.
/// An error's os_error() is one of the table below.
/// Threads: one at a time.
/// Limits: shares with more than 16 slots are refused: nobody could say who poked. Names are those that
/// find_name_problem() has nothing against.
/// Example:
///     HostShm shm = GM_TRY(HostShm::create(0));
///     GM_TRY(shm.attach({.name = "testing", .size_pages = 16}));
///     GM_TRY(shm.poke(host_shm_poke_all_but_me));
/// Known holes: instead of a pulse there is a descriptor, view(). The meaning of hyp_shm_verify is not documented, so
/// there is none. The bits are what senders say in their pages: a client may hide that it poked, or poke for nothing,
/// but only in its own name.

namespace guestmem::share {

inline constexpr std::uint64_t host_shm_page_bytes = 4096;
inline constexpr std::uint32_t host_shm_poke_all = 0xffff;
inline constexpr std::uint32_t host_shm_poke_all_but_me = 0xffff'ffff;

/// What a guest finds in its status register after the same mistake.
enum class GuestShmStatus : std::uint32_t {
    ok = 0,
    unknown_failure = 1,  ///< any other os_error()
    nomem = 2,            ///< ENOMEM
    client_max = 3,       ///< EBUSY: all slots that this principal could take are held
    illegal_name = 4,     ///< EINVAL
    no_permission = 5,    ///< EACCES
    does_not_exist = 6,   ///< ENOENT
};
[[nodiscard]] GuestShmStatus guest_shm_status_of(const Error& error);

struct HostShmOptions {
    std::string name;
    std::uint64_t size_pages = 0;  ///< of a share that has to be made
    std::string control = {};      ///< empty: default_control_path()
    bool may_create = true;
    std::uint64_t timeout_ms = 10'000;
    RingStyle ring = RingStyle::one_write;
};

class HostShm {
public:
    /// `private_bytes` are the caller's own, zeros: private_data().
    [[nodiscard]] static Result<HostShm> create(std::size_t private_bytes);

    [[nodiscard]] Result<void> attach(const HostShmOptions& options);
    void detach();
    [[nodiscard]] bool is_attached() const { return session_.has_value(); }

    [[nodiscard]] Result<void> poke(std::uint32_t bits);
    [[nodiscard]] Result<std::uint32_t> status();
    /// Waits until a status() says more than the last one did; 0 when the time passes first.
    [[nodiscard]] Result<std::uint32_t> wait_status(int timeout_ms);

    // 0, nothing and empty while not attached.
    [[nodiscard]] std::uint64_t size_pages() const { return memory_.bytes().size() / host_shm_page_bytes; }
    [[nodiscard]] std::span<std::byte> bytes() const { return memory_.bytes(); }
    [[nodiscard]] std::string name() const { return session_ ? session_->options().share : std::string{}; }
    [[nodiscard]] std::optional<std::uint32_t> index() const;
    [[nodiscard]] std::span<std::byte> private_data() { return private_data_; }

    /// Readable when the status may have changed; valid until detach().
    [[nodiscard]] FdView view() const { return session_ ? session_->view() : FdView{}; }
    /// Where a poke of this client arrives, for whoever hands it to the kernel as an interrupt: view() is not readable
    /// for what it takes, and status() says it all the same. It is another one after each change of generation(). Pokes
    /// of QEMU's guests do not arrive there.
    [[nodiscard]] Result<Fd> duplicate_bell() const;
    [[nodiscard]] std::uint64_t generation() const { return session_ ? session_->generation() : 0; }
    /// The service came back with another memory: bytes() still shows the old one, until renew().
    [[nodiscard]] bool has_other_memory() const;
    [[nodiscard]] Result<void> renew();

private:
    explicit HostShm(std::size_t private_bytes) : private_data_(private_bytes) {}
    [[nodiscard]] std::uint32_t active_bits() const;

    std::vector<std::byte> private_data_;
    std::optional<Session> session_;
    Mapping memory_;
    std::uint64_t memory_generation_ = 0;
    std::uint32_t last_active_ = 0;
};

}  // namespace guestmem::share
