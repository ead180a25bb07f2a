// SPDX-License-Identifier: Apache-2.0
/// Fuzzes template.hpp: a folder whose files somebody has changed.
///
/// The input is that of testing/hostile_folder.hpp. The folders are made once, by the first input.
/// Asserts: whatever stands in the files, opening, verifying and forking in each mode gives a value or an error with a
/// sentence; modes that show a page show the same; what verifies as good can be copied.
#include <cstddef>
#include <cstdint>
#include <span>

#include "guestmem/mem/template/testing/hostile_folder.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static guestmem::testing::HostileFolders folders;
    folders.run(std::as_bytes(std::span{data, size}));
    return 0;
}
