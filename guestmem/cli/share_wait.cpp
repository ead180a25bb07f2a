// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <climits>

#include "guestmem/cli/report.hpp"
#include "guestmem/cli/share_options.hpp"
#include "guestmem/cli/share_service.hpp"
#include "guestmem/sys/poll.hpp"

namespace guestmem::cli {
namespace {

/// The kicks that came; 0 when the time passed first.
Result<std::uint64_t> wait(const WaitOptions& options) {
    // The control connection is not needed while waiting: there are few of them.
    share::Client client = GM_TRY(GM_TRY(ShareService::connect(options.control)).attach(options.share));
    const std::uint32_t id = *client.table().own_id();
    const auto* bells = client.table().find(id);
    if (bells == nullptr || options.vector >= bells->size())
        return Error{Errc::out_of_range,
                     fmt::format("share '{}' has no vector {}", options.share, options.vector)};
    fmt::print(stderr, "waiting as peer {} on vector {}\n", id, options.vector);

    // The connection is watched too: a service that ends would leave this tool waiting for ever.
    const std::array<FdView, 2> watched{(*bells)[options.vector].view(), client.view()};
    using Clock = std::chrono::steady_clock;
    const auto deadline =
        Clock::now() + std::chrono::duration_cast<Clock::duration>(
                           std::chrono::duration<double>(std::max(options.timeout_seconds, 0.0)));
    for (;;) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
        const int timeout_ms =
            options.timeout_seconds < 0 ? -1 : static_cast<int>(std::clamp<std::int64_t>(left, 0, INT_MAX));
        const auto ready = GM_TRY(poll_readable(watched, timeout_ms));
        if (ready.empty()) return std::uint64_t{0};
        if (ready.front() == 0) {
            // Another peer of the share may have taken the kick: then the wait goes on.
            if (const std::uint64_t kicks = GM_TRY((*bells)[options.vector].drain()); kicks != 0)
                return kicks;
            continue;
        }
        GM_TRY(client.receive(0));
    }
}

}  // namespace

int share_wait(const WaitOptions& options) {
    const auto kicks = wait(options);
    if (!kicks) return report(kicks.error());
    if (*kicks == 0) {
        if (options.json) print("{\"kicks\":0}\n");
        fmt::print(stderr, "guestmem: no kick on vector {} within {} s\n", options.vector,
                   options.timeout_seconds);
        return exit_timeout;
    }
    print(options.json ? fmt::format("{{\"kicks\":{},\"vector\":{}}}\n", *kicks, options.vector)
                       : fmt::format("vector {}: {} kicks\n", options.vector, *kicks));
    return exit_ok;
}

}  // namespace guestmem::cli
