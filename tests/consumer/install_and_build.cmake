# SPDX-License-Identifier: Apache-2.0
# Installs the build tree BUILD into a temporary prefix, then configures, builds and runs the consumer against it
# the way a user would. Called with -DBUILD -DSOURCE -DWORK -DCOMPILER -DFLAGS -DGENERATOR; WORK is made anew.
file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})

function(run what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${what} failed (${status}):\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

string(REPLACE "clang++" "clang" c_compiler "${COMPILER}")
string(REPLACE "g++" "gcc" c_compiler "${c_compiler}")

run("install" ${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix)
run("configure" ${CMAKE_COMMAND} -S ${SOURCE} -B ${WORK}/build -G ${GENERATOR}
  -DCMAKE_BUILD_TYPE=Release "-DCMAKE_PREFIX_PATH=${WORK}/prefix"
  "-DCMAKE_CXX_COMPILER=${COMPILER}" "-DCMAKE_CXX_FLAGS=${FLAGS}"
  "-DCMAKE_C_COMPILER=${c_compiler}" "-DCMAKE_C_FLAGS=${FLAGS}"
  # A copy in the source tree or in the system would prove nothing.
  -DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF)
run("build" ${CMAKE_COMMAND} --build ${WORK}/build)
run("consumer" ${WORK}/build/consumer)
if(NOT output MATCHES "share.list of 65536 bytes")
  message(FATAL_ERROR "the consumer says something else: ${output}")
endif()
run("C consumer" ${WORK}/build/c_consumer)
if(NOT output MATCHES "version 1: share 'mailbox': no service at")
  message(FATAL_ERROR "the C consumer says something else: ${output}")
endif()
run("installed program" ${WORK}/prefix/bin/guestmem --help)

# A test or a header of the tests has no place in the package.
file(GLOB_RECURSE installed ${WORK}/prefix/*)
list(FILTER installed INCLUDE REGEX "(_test|_bench|_fuzz)\\.|/testing/")
if(installed)
  message(FATAL_ERROR "installed, but only for tests: ${installed}")
endif()
file(REMOVE_RECURSE ${WORK})
