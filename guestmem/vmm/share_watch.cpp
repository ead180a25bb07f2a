// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/share_watch.hpp"

#include <chrono>
#include <utility>

#include "guestmem/sys/poll.hpp"

namespace guestmem::vmm {
namespace {

/// A service that is away tells nothing: its clients look for it by themselves now and then.
constexpr int longest_wait_ms = 500;
/// What stays readable without anything to find is not asked for more often.
constexpr std::chrono::milliseconds idle_pause{1};

}  // namespace

Result<std::unique_ptr<ShareWatch>> ShareWatch::create() {
    EventFd wakeup = GM_TRY(EventFd::create());
    return std::unique_ptr<ShareWatch>{new ShareWatch{std::move(wakeup)}};
}

void ShareWatch::start(std::function<void()> begin) {
    thread_ = std::thread{[this, first = std::move(begin)] {
        if (first) first();
        run();
    }};
}

void ShareWatch::wake() { static_cast<void>(wakeup_.ring()); }

void ShareWatch::stop() {
    if (!thread_.joinable()) return;
    is_ending_ = true;
    wake();
    thread_.join();
}

void ShareWatch::run() {
    auto looked_at_all = std::chrono::steady_clock::now();
    while (!is_ending_) {
        Clients clients;
        for (const auto& source : sources_) {
            const Clients some = source();
            clients.insert(clients.end(), some.begin(), some.end());
        }
        std::vector<FdView> views{wakeup_.view()};
        for (const auto& client : clients) views.push_back(client->view());
        const auto ready = poll_readable(views, clients.empty() ? -1 : longest_wait_ms);
        static_cast<void>(wakeup_.drain());
        if (!ready) {
            std::this_thread::sleep_for(idle_pause);
            continue;
        }
        bool has_found = ready->empty();
        for (const std::size_t index : *ready) {
            if (index == 0) {
                has_found = true;
            } else if (clients[index - 1]->look()) {
                has_found = true;
            }
        }
        // Also while others keep this thread busy.
        const auto now = std::chrono::steady_clock::now();
        if (ready->empty() || now - looked_at_all >= std::chrono::milliseconds{longest_wait_ms}) {
            looked_at_all = now;
            for (const auto& client : clients) client->look();
        }
        if (!has_found) std::this_thread::sleep_for(idle_pause);
    }
}

}  // namespace guestmem::vmm
