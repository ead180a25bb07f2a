// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/sandbox.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/mapping.hpp"
#include "guestmem/sys/testing/child_end.hpp"

namespace guestmem::vmm {
namespace {

using guestmem::testing::end_of_child;
using guestmem::testing::ends_by_filter;
using guestmem::testing::ends_well;

#define SKIP_WITHOUT_FILTER() \
    if (const auto obstacle = Sandbox::obstacle()) GTEST_SKIP() << "no filter in this build: " << *obstacle

std::string line_of(const std::string& text, const std::string& key) {
    const std::size_t at = text.find("\n" + key + ":");
    if (at == std::string::npos) return {};
    const std::size_t from = text.find_first_not_of(" \t", at + key.size() + 2);
    return text.substr(from, text.find('\n', from) - from);
}

/// The calling thread's, as it is after it has entered; opened before, since most kinds open nothing.
std::string status_after(const Sandbox& sandbox, ThreadKind kind) {
    const auto file = open_file("/proc/thread-self/status", OpenMode::read);
    if (!file || !sandbox.enter(kind)) return {};
    std::string text(8192, '\0');
    const ssize_t size = ::pread(file->view().number(), text.data(), text.size(), 0);
    text.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
    return text;
}

TEST(Sandbox, LeavesAThreadNoCapabilityAndNoWayToOne) {
    for (const ThreadKind kind : {ThreadKind::processor, ThreadKind::clock, ThreadKind::watch,
                                  ThreadKind::service, ThreadKind::main}) {
        EXPECT_TRUE(ends_well(end_of_child([kind] {
            const Sandbox sandbox;
            const std::string text = status_after(sandbox, kind);
            constexpr const char* none = "0000000000000000";
            return line_of(text, "NoNewPrivs") == "1" && line_of(text, "CapEff") == none &&
                   line_of(text, "CapPrm") == none && line_of(text, "CapInh") == none &&
                   line_of(text, "CapAmb") == none && (::geteuid() != 0 || line_of(text, "CapBnd") == none) &&
                   line_of(text, "Seccomp") == (Sandbox::obstacle() ? "0" : "2");
        }))) << to_string(kind);
    }
}

TEST(Sandbox, EndsTheProcessAtWhatIsForbidden) {
    SKIP_WITHOUT_FILTER();
    EXPECT_TRUE(ends_by_filter(end_of_child([] {
        const Sandbox sandbox;
        return sandbox.enter(ThreadKind::processor) && ::socket(AF_INET, SOCK_STREAM, 0) != -7;
    })));
}

TEST(Sandbox, CanRefuseInstead) {
    SKIP_WITHOUT_FILTER();
    EXPECT_TRUE(ends_well(end_of_child([] {
        const Sandbox sandbox{FilterAnswer::refuse};
        return sandbox.enter(ThreadKind::clock) && ::socket(AF_INET, SOCK_STREAM, 0) == -1 && errno == EPERM;
    })));
}

TEST(Sandbox, OfTheServiceReadsWhatTheHostSaysAndNoOtherFile) {
    EXPECT_TRUE(ends_well(end_of_child([] {
        const Sandbox sandbox;
        if (!sandbox.enter(ThreadKind::service)) return false;
        const auto fenced_off = open_file("/etc/passwd", OpenMode::read);
        const bool has_fence = !fenced_off && fenced_off.error().code() == Errc::permission_denied;
        // A kernel without Landlock opens it.
        return read_text_file("/proc/meminfo", 1 << 20).has_value() && (has_fence || fenced_off.has_value());
    })));
}

TEST(Sandbox, OfMainLeavesNoDescriptorToAProgram) {
    EXPECT_TRUE(ends_well(end_of_child([] {
        const int given = ::open("/dev/null", O_RDONLY);  // NOLINT(android-cloexec-open): that is the case
        const Sandbox sandbox;
        return given >= 3 && sandbox.enter(ThreadKind::main) && (::fcntl(given, F_GETFD) & FD_CLOEXEC) != 0;
    })));
}

/// The flags of the mapping at `bytes`, of /proc/self/smaps.
std::string flags_at(const std::byte* bytes) {
    const std::string text = read_text_file("/proc/self/smaps", std::size_t{16} << 20).value();
    std::size_t at = 0;
    while (at < text.size()) {
        std::size_t used = 0;
        const std::string line = text.substr(at, text.find('\n', at) - at);
        at += line.size() + 1;
        const std::size_t dash = line.find('-');
        if (dash == std::string::npos || line.find(':') < dash) continue;
        const auto first = std::stoull(line, &used, 16);
        if (used != dash || first != reinterpret_cast<std::uintptr_t>(bytes)) continue;
        const std::size_t flags = text.find("VmFlags:", at);
        return text.substr(flags, text.find('\n', flags) - flags) + " ";
    }
    return {};
}

TEST(Sandbox, KeepsGuestMemoryFromChildrenAndFromCoreFiles) {
    const auto memory = Mapping::create_anonymous({.size_bytes = 1 << 16, .guard_bytes = 4096});
    ASSERT_TRUE(memory);
    ASSERT_TRUE(keep_to_ourselves(memory->bytes(), MemoryDump::left_out));
    const std::string flags = flags_at(memory->bytes().data());
    EXPECT_TRUE(flags.contains(" dc ")) << flags;
    EXPECT_TRUE(flags.contains(" dd ")) << flags;
    const int status = end_of_child([&] {
        volatile std::byte* const first = memory->bytes().data();
        return *first == std::byte{0};
    });
    EXPECT_FALSE(ends_well(status));
}

TEST(Sandbox, LeavesGuestMemoryInCoreFilesWhereThatIsAskedFor) {
    const auto memory = Mapping::create_anonymous({.size_bytes = 1 << 16, .guard_bytes = 4096});
    ASSERT_TRUE(memory);
    ASSERT_TRUE(keep_to_ourselves(memory->bytes(), MemoryDump::included));
    const std::string flags = flags_at(memory->bytes().data());
    EXPECT_TRUE(flags.contains(" dc ")) << flags;
    EXPECT_FALSE(flags.contains(" dd ")) << flags;
}

}  // namespace
}  // namespace guestmem::vmm
