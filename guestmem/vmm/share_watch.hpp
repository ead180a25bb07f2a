// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/vmm/devices/shmem_client.hpp"

/// The thread that waits for what the shares of a machine have to tell: kicks, and who comes and goes.
///
/// Contract: each client whose descriptor is readable is looked at. wake() makes the thread ask for the clients again:
/// whoever adds or removes one calls it. After stop() no client is touched.
/// Threads: wake() any.
/// Cost: one poll for each thing that happens.

namespace guestmem::vmm {

class ShareWatch {
public:
    using Clients = std::function<std::vector<std::shared_ptr<ShmemClient>>()>;

    [[nodiscard]] static Result<std::unique_ptr<ShareWatch>> create();
    ShareWatch(const ShareWatch&) = delete;
    ShareWatch& operator=(const ShareWatch&) = delete;
    ~ShareWatch() { stop(); }

    /// Before start().
    void add(Clients clients) { sources_.push_back(std::move(clients)); }
    /// `begin` is what the thread does first.
    void start(std::function<void()> begin = {});
    void wake();
    void stop();

private:
    explicit ShareWatch(EventFd wakeup) : wakeup_(std::move(wakeup)) {}
    void run();

    EventFd wakeup_;
    std::vector<Clients> sources_;
    std::thread thread_;
    std::atomic<bool> is_ending_{false};
};

}  // namespace guestmem::vmm
