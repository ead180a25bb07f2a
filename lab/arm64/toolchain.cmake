# SPDX-License-Identifier: Apache-2.0
# Debian's cross compiler for arm64 over a tree of unpacked arm64 packages. GUESTMEM_LAB is the folder that
# lab/arm64/run.sh fills: bin/ (the tools), target/ (the libraries).
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES GUESTMEM_LAB)
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_SYSROOT ${GUESTMEM_LAB}/target)
set(CMAKE_C_COMPILER ${GUESTMEM_LAB}/bin/aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER ${GUESTMEM_LAB}/bin/aarch64-linux-gnu-g++)

# Libraries and packages of the target only, programs of the machine only.
set(CMAKE_FIND_ROOT_PATH ${CMAKE_SYSROOT})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(PKG_CONFIG_EXECUTABLE ${GUESTMEM_LAB}/bin/pkg-config)
set(ENV{PKG_CONFIG_SYSROOT_DIR} ${CMAKE_SYSROOT})
set(ENV{PKG_CONFIG_LIBDIR}
  ${CMAKE_SYSROOT}/usr/lib/aarch64-linux-gnu/pkgconfig:${CMAKE_SYSROOT}/usr/share/pkgconfig)

# What runs a program of the target on this machine; ctest and gtest_discover_tests use it. The library path of
# the unpacked tools (run.sh) is not for the target's programs.
set(CMAKE_CROSSCOMPILING_EMULATOR
  ${GUESTMEM_LAB}/host/usr/bin/qemu-aarch64-static;-L;${CMAKE_SYSROOT};-U;LD_LIBRARY_PATH)
