# SPDX-License-Identifier: Apache-2.0
set_target_properties(int8q_static PROPERTIES EXPORT_NAME static)
set_target_properties(int8q_cxx PROPERTIES EXPORT_NAME cxx)
set_target_properties(int8q_headers PROPERTIES EXPORT_NAME headers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/int8q)
install(
  TARGETS int8q int8q_static int8q_cxx int8q_headers
  EXPORT int8q-targets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
)
install(DIRECTORY include/int8q DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")
install(EXPORT int8q-targets NAMESPACE int8q:: DESTINATION ${package_dir})

configure_package_config_file(
  cmake/int8q-config.cmake.in
  int8q-config.cmake
  INSTALL_DESTINATION ${package_dir}
  NO_SET_AND_CHECK_MACRO
)
write_basic_package_version_file(int8q-config-version.cmake COMPATIBILITY SameMajorVersion)
install(
  FILES ${PROJECT_BINARY_DIR}/int8q-config.cmake ${PROJECT_BINARY_DIR}/int8q-config-version.cmake
  DESTINATION ${package_dir}
)

# Relative to where the .pc lies, so that an installed tree can be moved.
file(RELATIVE_PATH pc_prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" pc_prefix "${pc_prefix}")
configure_file(cmake/int8q.pc.in int8q.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/int8q.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES LICENSE README.md CHANGELOG.md DESTINATION ${CMAKE_INSTALL_DOCDIR})

# The wheel's library lies in the package under its SONAME: a wheel holds no symbolic links.
if(SKBUILD)
  set_target_properties(int8q PROPERTIES VERSION ${INT8Q_ABI_MAJOR})
  install(TARGETS int8q LIBRARY DESTINATION int8q COMPONENT python NAMELINK_SKIP)
endif()
