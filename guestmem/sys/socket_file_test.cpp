// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/socket_file.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/sys/unix_socket.hpp"

namespace guestmem {
namespace {

using testing::TempFolder;

TEST(SocketFile, IsTheSameUntilItIsRemovedOrReplaced) {
    const TempFolder folder;
    const std::string path = folder.path_of("socket");
    UnixListener listener = UnixListener::create({.path = path}).value();
    EXPECT_EQ(look_at_socket_file(listener.view(), path).value(), SocketFile::same);

    ASSERT_EQ(std::rename(path.c_str(), folder.path_of("aside").c_str()), 0);
    EXPECT_EQ(look_at_socket_file(listener.view(), path).value(), SocketFile::gone);
    EXPECT_EQ(look_at_socket_file(listener.view(), folder.path_of("missing/socket")).value(),
              SocketFile::gone);

    std::ofstream{path} << "no socket";
    EXPECT_EQ(look_at_socket_file(listener.view(), path).value(), SocketFile::another);
    ASSERT_EQ(::unlink(path.c_str()), 0);

    ASSERT_EQ(std::rename(folder.path_of("aside").c_str(), path.c_str()), 0);
    EXPECT_EQ(look_at_socket_file(listener.view(), path).value(), SocketFile::same) << "it came back";
}

TEST(SocketFile, OfAnotherSocketIsAnotherWhereTheKernelTells) {
    const TempFolder folder;
    const std::string path = folder.path_of("socket");
    const UnixListener first = UnixListener::create({.path = path}).value();
    ASSERT_EQ(std::rename(path.c_str(), folder.path_of("aside").c_str()), 0);
    const UnixListener second = UnixListener::create({.path = path}).value();
    EXPECT_EQ(look_at_socket_file(second.view(), path).value(), SocketFile::same);
    {
        const FaultInjector injector{0, {.only = SysCall::socket}};
        EXPECT_EQ(look_at_socket_file(first.view(), path).value(), SocketFile::same) << "nobody tells";
    }
    // A kernel without CONFIG_UNIX_DIAG says nothing of the socket that has its file either.
    const auto seen = look_at_socket_file(first.view(), path).value();
    if (seen == SocketFile::same) GTEST_SKIP() << "SKIPPED: this kernel does not tell a socket's file";
    EXPECT_EQ(seen, SocketFile::another);
}

TEST(SocketFile, WhateverFailsIsAnErrorOrTheBelief) {
    const TempFolder folder;
    const std::string path = folder.path_of("socket");
    const UnixListener listener = UnixListener::create({.path = path}).value();
    std::uint64_t nth = 0;
    for (;; ++nth) {
        const FaultInjector injector{nth};
        const auto seen = look_at_socket_file(listener.view(), path);
        if (seen) {
            EXPECT_EQ(*seen, SocketFile::same) << nth;
        }
        if (!injector.has_fired()) break;
        EXPECT_TRUE(seen || nth < 2) << "only the looks at the files are needed";
    }
    EXPECT_GE(nth, 4U);
}

}  // namespace
}  // namespace guestmem
