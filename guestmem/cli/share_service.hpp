// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "guestmem/base/result.hpp"
#include "guestmem/control/client.hpp"
#include "guestmem/share/calls.hpp"
#include "guestmem/share/ivshmem/client.hpp"
#include "guestmem/sys/mapping.hpp"

/// The share service as the host's tools see it: its calls, typed.
///
/// Threads: one at a time.

namespace guestmem::cli {

class ShareService {
public:
    /// `control` empty: the default socket.
    [[nodiscard]] static Result<ShareService> connect(const std::string& control);

    /// The result text of a call without descriptors, for --json.
    [[nodiscard]] Result<std::string> call(const std::string& name, const std::string& arguments);
    [[nodiscard]] Result<share::ShareStatus> stat(const std::string& name);
    /// The memory of a share, mapped whole; the size that its users are told.
    [[nodiscard]] Result<std::pair<Mapping, std::uint64_t>> map(const std::string& name, MapAccess access);
    /// Joins a share on the highest free slot.
    [[nodiscard]] Result<share::Client> attach(const std::string& name);
    /// `peer` is a number or "all".
    [[nodiscard]] Result<share::RingReply> ring(const std::string& name, const std::string& peer,
                                                std::uint32_t vector);
    /// Until the peer holds its slot and, with an offset, the 32-bit word there is not 0. False: the time has passed.
    [[nodiscard]] Result<bool> wait_ready(const std::string& name, const std::string& peer,
                                          std::optional<std::uint64_t> ready_word, double timeout_seconds);
    /// Whether ring() with these words would reach a doorbell; rings nothing.
    [[nodiscard]] Result<void> check_ring(const std::string& name, const std::string& peer,
                                          std::uint32_t vector);

private:
    explicit ShareService(control::Client client) : client_(std::move(client)) {}
    control::Client client_;
};

/// Stores bytes at an offset of a share, all of them or none.
[[nodiscard]] Result<void> store(ShareService& service, const std::string& share, std::uint64_t offset,
                                 std::string_view bytes);

}  // namespace guestmem::cli
