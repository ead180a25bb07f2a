# SPDX-License-Identifier: Apache-2.0
# find_package(guestmem) for programs that use the library; tests/consumer shows one.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
install(TARGETS guestmem EXPORT guestmem-targets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  FILE_SET headers DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS guestmem_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(EXPORT guestmem-targets NAMESPACE guestmem::
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/guestmem)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/guestmem-config.cmake.in
  ${PROJECT_BINARY_DIR}/guestmem-config.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/guestmem)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/guestmem-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/guestmem-config.cmake
  ${PROJECT_BINARY_DIR}/guestmem-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/guestmem)
