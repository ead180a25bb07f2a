// SPDX-License-Identifier: Apache-2.0
// Uses something of each room that has third-party code behind it, so that a library missing from the package's
// dependencies is a link error here.
#include <cstdio>
#include <guestmem/base/sizes.hpp>
#include <guestmem/control/wire.hpp>
#include <guestmem/sys/event_loop.hpp>
#include <guestmem/sys/mapping.hpp>
#include <guestmem/sys/memfd.hpp>

namespace {

guestmem::Result<void> run() {
    const std::uint64_t size = GM_TRY(guestmem::parse_size("64K"));
    const guestmem::Fd memory = GM_TRY(
        guestmem::create_sealed_memory({.name = "consumer", .size_bytes = size, .huge_page_bytes = 0}));
    const guestmem::Mapping mapping =
        GM_TRY(guestmem::Mapping::create(memory, size, guestmem::MapAccess::read_write));
    guestmem::EventLoop loop = GM_TRY(guestmem::EventLoop::create());
    GM_TRY(loop.run_once(0));
    const guestmem::control::Request request =
        GM_TRY(guestmem::control::decode_request(R"({"v":1,"id":3,"call":"share.list"})"));
    std::printf("%s of %zu bytes\n", request.call.c_str(), mapping.bytes().size());
    return {};
}

}  // namespace

int main() {
    const auto status = run();
    if (status) return 0;
    std::fprintf(stderr, "consumer: %s\n", status.error().message().c_str());
    return 1;
}
