// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/device/interrupt.hpp"
#include "guestmem/device/io_device.hpp"
#include "guestmem/mem/address.hpp"
#include "guestmem/share/host_shm.hpp"
#include "guestmem/share/rights.hpp"
#include "guestmem/vmm/devices/shmem_client.hpp"
#include "guestmem/vmm/region_window.hpp"

/// `vdev shmem`: QNX's shared memory device, by which a guest creates, attaches to and finds regions by name.
///
/// Concepts: the factory page has the registers; a guest writes a name and then a size in pages of 4096 bytes, and
/// finds in `status` how it went, in `shmem` where the region is: a control page (shmem_client.hpp), and the data
/// behind it. There is no separate attach: a name that exists is attached to, and the first maker's size stands.
/// What the guest may reach is decided twice: here by the configuration's allow and deny, and by the share service.
/// Contract: offsets 0x00 signature, 0x08 shmem, 0x10 vector, 0x14 status, 0x18 size, 0x1c name (32 bytes), 0x3c
/// find. A name is 1 to 31 printable characters without '/', and a NUL behind them. `find` takes the number of a
/// live connection of this guest, from 0 in the order of attach, and fills name, size, shmem and status; one whose
/// region has ended (shmem_client.hpp) is not live, and its data leaves the guest at once. A refusal is one log line.
/// The interrupt is a level: up from a change of any connection's status until the guest has read it. Where the guest
/// has messages instead, each kick is one, and comes from its sender's write to the guest without a thread of ours.
/// Threads: any; an attach keeps the processor that asked for it until the service has answered, at most
/// attach_timeout_ms, and no other one: a request that comes meanwhile through the same page is refused as an unknown
/// failure.
/// Limits: max_connections at a time. A region for which the service does not find all pages within attach_timeout_ms,
/// about 1 GiB of them, is refused as one for which memory is short: such a one is made by a `create` line.
/// Lifetime: window and line outlive its connections: detach_all() comes before they go, and after the last access.

namespace guestmem::vmm {

class ShmemDevice final : public IoDevice {
public:
    static constexpr std::uint64_t signature = 0x4d53'4732'474d'5651;
    static constexpr std::size_t name_field_bytes = 32;
    static constexpr std::size_t max_connections = 64;
    static constexpr std::uint64_t attach_timeout_ms = 2'000;

    struct Options {
        std::string name;              ///< for the log: "vdev shmem"
        std::string control;           ///< the service's control socket
        share::Rights rights = {};     ///< allow and deny of the configuration
        std::string rights_file = {};  ///< where they stand, for the log
        std::shared_ptr<InterruptLine> line = {};
        /// For message interrupts: one is due after a change, or none is any more.
        std::function<void(bool is_due)> message = {};
        /// The message once more: an eventfd whose kicks are it, without a thread of ours; until the second is called.
        std::function<Result<void>(FdView bell)> connect_bell = {};
        std::function<void(FdView bell)> disconnect_bell = {};
        std::function<void(const std::string&)> warn = {};
        std::function<void()> watch = {};  ///< connections came or went: clients() has others
    };
    ShmemDevice(Options options, RegionWindow& window);
    ~ShmemDevice() override = default;

    [[nodiscard]] std::vector<std::shared_ptr<ShmemClient>> clients() const;
    void detach_all();
    /// The interrupt's number, for the register of that name.
    void set_vector(std::uint32_t vector);

    void read(std::uint64_t offset, std::span<std::byte> data) override;
    void write(std::uint64_t offset, std::span<const std::byte> data) override;

private:
    struct Connection {
        std::uint64_t number = 0;
        GuestAddress place;
        std::shared_ptr<ShmemClient> client;
        Fd bell = {};  ///< connected
    };
    struct Factory {
        std::uint64_t shmem = 0;
        std::uint32_t status = 0;
        std::uint32_t size = 0;
        std::array<std::byte, name_field_bytes> name{};
    };

    [[nodiscard]] Result<std::string> name_of(const Factory& factory) const;
    [[nodiscard]] Result<Connection> attach(const std::string& name, std::uint32_t size_pages);
    void create(std::uint32_t size_pages);
    void find(std::uint32_t number);
    void refuse(std::uint32_t status);
    void leave(std::uint64_t number);
    void end(std::uint64_t number);
    void connect_bell(Connection& connection) const;
    void move_bell(std::uint64_t number);
    void warn(const std::string& text) const;
    void hide(const Connection& connection);
    void update_line();

    Options options_;
    RegionWindow& window_;
    mutable std::mutex mutex_;  ///< of the registers and the list
    std::mutex attach_mutex_;   ///< one attach at a time
    std::mutex line_mutex_;
    Factory factory_;
    std::uint32_t vector_ = 0;
    std::vector<Connection> connections_;
    std::uint64_t next_number_ = 0;
    bool is_up_ = false;
};

}  // namespace guestmem::vmm
