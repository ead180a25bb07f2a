# SPDX-License-Identifier: Apache-2.0
# How everything is compiled. Warnings are errors for developers only: a newer compiler must not
# break a user's build.
add_library(guestmem_flags INTERFACE)
target_compile_options(guestmem_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion)
if(GUESTMEM_DEVELOPER)
  target_compile_options(guestmem_flags INTERFACE -Werror)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ 12 at -O3 sees uninitialized members inside of std::optional and std::expected that are not read.
  target_compile_options(guestmem_flags INTERFACE -Wno-maybe-uninitialized)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  # libstdc++ 12's stable_sort calls what it deprecates itself.
  target_compile_options(guestmem_flags INTERFACE -Wno-deprecated-declarations)
endif()
target_compile_options(guestmem_flags INTERFACE -fstack-protector-strong)
if(CMAKE_BUILD_TYPE STREQUAL "Release")
  target_compile_options(guestmem_flags INTERFACE -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
  target_link_options(guestmem_flags INTERFACE -Wl,-z,relro,-z,now)
  # What nobody calls is left out of programs: less of their files is read at the start, and is in memory afterwards.
  target_compile_options(guestmem_flags INTERFACE -ffunction-sections -fdata-sections)
  target_link_options(guestmem_flags INTERFACE -Wl,--gc-sections)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # The same compiler at the same level finds overlaps where a string is put together (its bug 105651).
    target_compile_options(guestmem_flags INTERFACE -Wno-restrict)
  endif()
endif()
