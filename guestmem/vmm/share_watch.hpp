// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/vmm/devices/watched_share.hpp"

/// The thread that waits for what the shares of a machine have to tell: kicks, and who comes and goes.
///
/// Concepts: a client is what a device has in a share.
/// Contract: each client whose descriptor is readable is looked at. wake() makes the thread ask for the clients again:
/// whoever adds or removes one calls it. After stop() no client is touched.
/// Threads: wake() any.
/// Cost: one poll for each thing that happens.

namespace guestmem::vmm {

class ShareWatch {
public:
    [[nodiscard]] static Result<std::unique_ptr<ShareWatch>> create();
    ShareWatch(const ShareWatch&) = delete;
    ShareWatch& operator=(const ShareWatch&) = delete;
    ~ShareWatch() { stop(); }

    /// Before start(). `source()` is a list of shared pointers to clients.
    template <typename Source>
    void add(Source source) {
        sources_.push_back([list = std::move(source)] {
            const auto found = list();
            return Clients{found.begin(), found.end()};
        });
    }
    /// `begin` is what the thread does first.
    void start(std::function<void()> begin = {});
    void wake();
    void stop();

private:
    using Clients = std::vector<std::shared_ptr<WatchedShare>>;
    explicit ShareWatch(EventFd wakeup) : wakeup_(std::move(wakeup)) {}
    void run();

    EventFd wakeup_;
    std::vector<std::function<Clients()>> sources_;
    std::thread thread_;
    std::atomic<bool> is_ending_{false};
};

}  // namespace guestmem::vmm
