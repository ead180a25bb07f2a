// SPDX-License-Identifier: Apache-2.0
// Uses something of each room that has third-party code behind it, so that a library missing from the package's
// dependencies is a link error here.
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <guestmem/base/sizes.hpp>
#include <guestmem/control/wire.hpp>
#include <guestmem/mem/guest_memory.hpp>
#include <guestmem/mem/layout.hpp>
#include <guestmem/sys/event_loop.hpp>
#include <guestmem/sys/fault_guard.hpp>
#include <guestmem/sys/mapping.hpp>
#include <guestmem/sys/memfd.hpp>
#include <string>

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

/// Guest memory over a file that is cut short: the fault table is this program's, the handler the library's.
guestmem::Result<void> reach_guest_memory() {
    using namespace guestmem;  // NOLINT(google-build-using-namespace): as a user would
    GM_TRY(install_fault_guard());
    const std::string path =
        std::filesystem::temp_directory_path() / ("guestmem-consumer-" + std::to_string(::getpid()));
    Fd file = GM_TRY(open_file(path, OpenMode::create_exclusive));
    std::filesystem::resize_file(path, 8192);
    const auto memory = GM_TRY(HostMemory::create_from_file(std::move(file), {.size_bytes = 8192}));
    Layout layout;
    layout.add(GM_TRY(Region::create({.name = "ram", .base = GuestAddress{0x1000}, .memory = memory})));
    GuestMemory view{GM_TRY(std::move(layout).freeze())};
    const auto written = view.write_le<std::uint32_t>(GuestAddress{0x2000}, 7);
    const bool is_read = written && view.read_le<std::uint32_t>(GuestAddress{0x2000}).value_or(0) == 7;
    std::filesystem::resize_file(path, 4096);
    const auto lost = view.read_le<std::uint32_t>(GuestAddress{0x2000});
    std::filesystem::remove(path);
    if (!is_read) return Error{Errc::io, "guest memory does not say what was written"};
    if (lost || lost.error().reason() != AccessReason::fault)
        return Error{Errc::io, "a page that its file has lost is not a fault"};
    return {};
}

}  // namespace

int main() {
    auto status = run();
    if (status) status = reach_guest_memory();
    if (status) return 0;
    std::fprintf(stderr, "consumer: %s\n", status.error().message().c_str());
    return 1;
}
