# SPDX-License-Identifier: Apache-2.0
#
# int8q, the command; and int8q-testing, the same objects over the test library, whose kernels can be corrupted by name.
file(GLOB tool_sources CONFIGURE_DEPENDS tools/int8q/*.cpp)
if(NOT tool_sources)
  message(STATUS "int8q: tools/int8q has no sources; the command is not built")
  return()
endif()
find_package(CLI11 REQUIRED)
find_path(INT8Q_FMT_INCLUDE_DIR fmt/core.h REQUIRED)

add_library(int8q_command OBJECT EXCLUDE_FROM_ALL ${tool_sources})
target_include_directories(int8q_command SYSTEM PRIVATE ${INT8Q_FMT_INCLUDE_DIR})
target_compile_definitions(int8q_command PRIVATE FMT_HEADER_ONLY=1 INT8Q_VERSION="${PROJECT_VERSION}")
target_link_libraries(
  int8q_command
  PRIVATE int8q_headers int8q_cxx int8q_warnings CLI11::CLI11 nlohmann_json::nlohmann_json
)

function(int8q_add_command target output library)
  add_executable(${target} $<TARGET_OBJECTS:int8q_command>)
  set_target_properties(${target} PROPERTIES OUTPUT_NAME ${output} LINKER_LANGUAGE CXX)
  target_link_libraries(${target} PRIVATE ${library} int8q_cxx int8q_warnings)
endfunction()

if(INT8Q_BUILD_TOOLS)
  int8q_add_command(int8q_cli int8q int8q)
  set_target_properties(
    int8q_cli
    PROPERTIES BUILD_RPATH "$ORIGIN/../lib" INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}"
  )
  install(TARGETS int8q_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
if(INT8Q_BUILD_TESTS)
  int8q_add_command(int8q_cli_testing int8q-testing int8q_testing)
endif()
