# SPDX-License-Identifier: Apache-2.0
# Compiles SOURCE as it stands, which has to work, and with GM_BAD_LINE, which has to fail with a message that
# matches EXPECTED. Without the first half a case could "fail" for a reason of its own for ever.
# Called with -DCOMPILER -DFLAGS -DINCLUDE -DSOURCE -DEXPECTED.
file(READ ${SOURCE} text)
if(NOT text MATCHES "GM_BAD_LINE")
  message(FATAL_ERROR "${SOURCE} has no line under GM_BAD_LINE: it proves nothing")
endif()

# One language for the messages that are looked at.
set(ENV{LC_ALL} C)
set(command ${COMPILER} ${FLAGS} -I${INCLUDE} -fsyntax-only ${SOURCE})

execute_process(COMMAND ${command} RESULT_VARIABLE status ERROR_VARIABLE output OUTPUT_QUIET)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${SOURCE} has to compile without its bad line:\n${output}")
endif()

execute_process(COMMAND ${command} -DGM_BAD_LINE RESULT_VARIABLE status ERROR_VARIABLE output OUTPUT_QUIET)
if(status EQUAL 0)
  message(FATAL_ERROR "${SOURCE} compiles with its bad line")
endif()
if(NOT output MATCHES "${EXPECTED}")
  message(FATAL_ERROR "${SOURCE} fails, but not with '${EXPECTED}':\n${output}")
endif()
