// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/file_fence.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/landlock.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/memory_file.hpp"
#include "guestmem/sys/testing/child_end.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::end_of_child;
using testing::ends_well;
using testing::TempFolder;

bool has_fences() {
    return ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION) >= 1;
}

#define SKIP_WITHOUT_FENCES() \
    if (!has_fences()) GTEST_SKIP() << "this kernel has no Landlock"

bool is_refused(const std::string& path, int flags) {
    return ::open(path.c_str(), flags | O_CLOEXEC, 0600) == -1 && errno == EACCES;
}

TEST(FileFence, LeavesNoFileWhereNothingIsNamed) {
    SKIP_WITHOUT_FENCES();
    const TempFolder folder;
    const std::string there = folder.write("there", "x");
    EXPECT_TRUE(ends_well(end_of_child([&] {
        const auto fenced = restrict_files({});
        return fenced && *fenced && is_refused(there, O_RDONLY) && is_refused(there, O_WRONLY) &&
               is_refused(folder.path_of("made"), O_RDWR | O_CREAT) &&
               is_refused("/proc/self/status", O_RDONLY);
    })));
}

TEST(FileFence, LeavesWhatIsNamedForReadingAlone) {
    SKIP_WITHOUT_FENCES();
    const TempFolder folder;
    const TempFolder other;
    const std::string there = folder.write("there", "x");
    const std::string elsewhere = other.write("there", "x");
    const std::array<std::string, 3> readable{folder.path(), "/dev/null", folder.path_of("nowhere")};
    EXPECT_TRUE(ends_well(end_of_child([&] {
        const auto fenced = restrict_files(readable);
        return fenced && *fenced && read_text_file(there, 10) && is_refused(there, O_WRONLY) &&
               is_refused(there, O_RDONLY | O_TRUNC) && is_refused(elsewhere, O_RDONLY) &&
               open_file("/dev/null", OpenMode::read) && is_refused("/dev/null", O_WRONLY);
    })));
}

TEST(FileFence, LeavesMemoryFilesAndWhatIsOpen) {
    SKIP_WITHOUT_FENCES();
    const TempFolder folder;
    const std::string there = folder.write("there", "x");
    EXPECT_TRUE(ends_well(end_of_child([&] {
        const auto open = open_file(there, OpenMode::read_write);
        const std::array<std::string, 1> readable{"/proc"};
        const auto fenced = restrict_files(readable);
        const auto memory = create_sealed_memory({.name = "fenced", .size_bytes = 4096});
        return open && fenced && memory && reopen_read_only(*memory) &&
               ::pwrite(open->view().number(), "y", 1, 0) == 1;
    })));
}

TEST(FileFence, IsNoErrorWhereTheKernelHasNone) {
    EXPECT_TRUE(ends_well(end_of_child([] {
        FaultInjector injector{0, {.only = SysCall::landlock, .os_error = ENOSYS}};
        const auto fenced = restrict_files({});
        return fenced && !*fenced && open_file("/dev/null", OpenMode::read);
    })));
}

TEST(FileFence, WhateverFailsIsAnErrorAndNothingHolds) {
    SKIP_WITHOUT_FENCES();
    EXPECT_TRUE(ends_well(end_of_child([] {
        const std::array<std::string, 1> readable{"/proc"};
        for (std::uint64_t nth = 0; nth < 6; ++nth) {
            FaultInjector injector{nth};
            if (restrict_files(readable)) return false;
        }
        return open_file("/dev/null", OpenMode::read).has_value();
    })));
}

}  // namespace
}  // namespace guestmem
