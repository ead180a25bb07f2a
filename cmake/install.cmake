# SPDX-License-Identifier: Apache-2.0
# find_package(guestmem) for programs that use the library; tests/consumer shows one.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
install(TARGETS guestmem EXPORT guestmem-targets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  FILE_SET headers DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS guestmem_share EXPORT guestmem-targets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
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

# Units and snippets for systemd: below the prefix, which may be chosen at install time, with the program's path.
option(GUESTMEM_INSTALL_SYSTEMD "Install the share service's systemd units, user and folders" ON)
if(GUESTMEM_INSTALL_SYSTEMD)
  set(guestmem_packaging ${PROJECT_SOURCE_DIR}/packaging)
  install(FILES ${guestmem_packaging}/guestmem-share.service ${guestmem_packaging}/guestmem-share.socket
    DESTINATION lib/systemd/system COMPONENT systemd)
  install(CODE "
    set(unit_file \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/lib/systemd/system/guestmem-share.service\")
    file(READ \"\${unit_file}\" unit)
    string(REPLACE \"/usr/bin/guestmem\"
      \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_BINDIR}/guestmem\" unit \"\${unit}\")
    file(WRITE \"\${unit_file}\" \"\${unit}\")" COMPONENT systemd)
  install(FILES ${guestmem_packaging}/guestmem-share.sysusers.conf
    DESTINATION lib/sysusers.d RENAME guestmem-share.conf COMPONENT systemd)
  install(FILES ${guestmem_packaging}/guestmem-share.tmpfiles.conf
    DESTINATION lib/tmpfiles.d RENAME guestmem-share.conf COMPONENT systemd)
endif()
