# SPDX-License-Identifier: Apache-2.0
# A room is a folder of guestmem/. The end of a file's name says what it is: x.cpp is the thing,
# x_test.cpp its test, x_bench.cpp its bench, x_fuzz.cpp its fuzzer.

function(guestmem_room_sources room result)
  file(GLOB all CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/guestmem/${room}/*.cpp)
  list(FILTER all EXCLUDE REGEX "_(test|bench|fuzz)\\.cpp$")
  set(${result} ${all} PARENT_SCOPE)
endfunction()

function(guestmem_room_files room suffix result)
  file(GLOB all CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/guestmem/${room}/*_${suffix}.cpp)
  set(${result} ${all} PARENT_SCOPE)
endfunction()

function(guestmem_library target)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "" "" "ROOMS")
  add_library(${target} STATIC)
  add_library(guestmem::${target} ALIAS ${target})
  foreach(room IN LISTS ARG_ROOMS)
    guestmem_room_sources(${room} sources)
    target_sources(${target} PRIVATE ${sources})
    file(GLOB headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/guestmem/${room}/*.hpp)
    target_sources(${target} PUBLIC FILE_SET headers TYPE HEADERS
      BASE_DIRS ${PROJECT_SOURCE_DIR} FILES ${headers})
  endforeach()
  target_compile_features(${target} PUBLIC cxx_std_23)
  target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:guestmem_flags>)
  set_property(GLOBAL APPEND PROPERTY GUESTMEM_ROOMS ${ARG_ROOMS})
endfunction()

function(guestmem_program target output_name)
  cmake_parse_arguments(PARSE_ARGV 2 ARG "" "" "ROOMS")
  add_executable(${target})
  set_target_properties(${target} PROPERTIES OUTPUT_NAME ${output_name})
  foreach(room IN LISTS ARG_ROOMS)
    guestmem_room_sources(${room} sources)
    target_sources(${target} PRIVATE ${sources})
  endforeach()
  target_link_libraries(${target} PRIVATE guestmem::guestmem guestmem_flags)
endfunction()

# One test program per room: build/<preset>/bin/<room>_test; each TEST is a test of ctest.
function(guestmem_room_test room)
  guestmem_room_files(${room} test sources)
  string(REPLACE "/" "_" name ${room})
  if(NOT sources)
    return()
  endif()
  add_executable(${name}_test ${sources})
  target_link_libraries(${name}_test PRIVATE
    guestmem::guestmem guestmem_flags fmt::fmt GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name}_test PRIVATE GUESTMEM_SOURCE="${PROJECT_SOURCE_DIR}")
  gtest_discover_tests(${name}_test TEST_PREFIX ${room}. TEST_FILTER "-*Litmus*"
    DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 120)
  # Two threads that have to meet need both processors for themselves.
  gtest_discover_tests(${name}_test TEST_PREFIX ${room}. TEST_FILTER "*Litmus*" TEST_LIST ${name}_litmus
    DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 120 RUN_SERIAL ON)
endfunction()

# One bench program per file: build/<preset>/bin/<stem>_bench.
function(guestmem_room_benches room)
  guestmem_room_files(${room} bench sources)
  foreach(source IN LISTS sources)
    get_filename_component(name ${source} NAME_WE)
    add_executable(${name} ${source})
    target_link_libraries(${name} PRIVATE guestmem::guestmem guestmem_flags fmt::fmt benchmark::benchmark)
  endforeach()
endfunction()

# A fuzzer per file. With GUESTMEM_FUZZ it is a libFuzzer program; in every build a replay of its corpus is a
# test, so that a fuzzer never rots: fuzz/corpus/<target>, where x_fuzz.cpp is the target x.
function(guestmem_room_fuzzers room)
  guestmem_room_files(${room} fuzz sources)
  foreach(source IN LISTS sources)
    get_filename_component(name ${source} NAME_WE)
    string(REGEX REPLACE "_fuzz$" "" target ${name})
    if(GUESTMEM_FUZZ)
      add_executable(${name} ${source})
      target_link_libraries(${name} PRIVATE guestmem::guestmem guestmem_flags fmt::fmt)
      target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    else()
      add_executable(${target}_replay ${source} ${PROJECT_SOURCE_DIR}/fuzz/replay.cpp)
      target_link_libraries(${target}_replay PRIVATE guestmem::guestmem guestmem_flags fmt::fmt)
      add_test(NAME fuzz.replay.${target}
        COMMAND ${target}_replay ${PROJECT_SOURCE_DIR}/fuzz/corpus/${target})
    endif()
  endforeach()
endfunction()

# A Python test file: one test of ctest, told where the program and the sources are.
function(guestmem_python_test name file)
  cmake_parse_arguments(PARSE_ARGV 2 ARG "SERIAL" "TIMEOUT" "LABELS")
  add_test(NAME ${name} COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/${file}
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set(guestmem_python_environment
    GUESTMEM=$<TARGET_FILE:guestmem_cli>
    GUESTMEM_BUILD=${PROJECT_BINARY_DIR}
    GUESTMEM_SOURCE=${PROJECT_SOURCE_DIR}
    PYTHONDONTWRITEBYTECODE=1)
  set_tests_properties(${name} PROPERTIES
    SKIP_RETURN_CODE 77
    TIMEOUT ${ARG_TIMEOUT}
    LABELS "${ARG_LABELS}"
    RUN_SERIAL "${ARG_SERIAL}"
    ENVIRONMENT "${guestmem_python_environment}")
endfunction()
