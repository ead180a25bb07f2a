# SPDX-License-Identifier: Apache-2.0
# The program carries its libraries with it, all but the C library: it starts for each machine, and looking for a
# dozen of shared ones takes longer than making the machine. A library that is there shared only stays so. Instrumented
# builds stay dynamic: a sanitizer wants to stand before what it watches.
string(FIND "${CMAKE_CXX_FLAGS}" "-fsanitize" guestmem_sanitizer_at)
if(guestmem_sanitizer_at EQUAL -1)
  set(guestmem_static_default ON)
else()
  set(guestmem_static_default OFF)
endif()
option(GUESTMEM_STATIC "The program has its libraries in itself, but for the C library" ${guestmem_static_default})

function(guestmem_carry_libraries target)
  if(NOT GUESTMEM_STATIC)
    return()
  endif()
  # What these have is not asked of the shared libraries behind them, which --as-needed leaves out then.
  target_sources(${target} PRIVATE ${PROJECT_SOURCE_DIR}/cmake/fmt_library.cpp)
  foreach(name zstd fdt)
    find_library(GUESTMEM_${name}_ARCHIVE NAMES lib${name}.a)
    mark_as_advanced(GUESTMEM_${name}_ARCHIVE)
    if(GUESTMEM_${name}_ARCHIVE)
      target_link_libraries(${target} PRIVATE ${GUESTMEM_${name}_ARCHIVE})
    endif()
  endforeach()
  target_link_options(${target} PRIVATE -static-libstdc++ -static-libgcc -Wl,--as-needed)
endfunction()
