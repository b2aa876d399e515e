# SPDX-License-Identifier: Apache-2.0
#
# tests/test_NAME.cpp is an executable over the test library, tests/test_NAME.c one over the shared library.
find_package(Eigen3 3.3 REQUIRED NO_MODULE)

# Debian ships GoogleTest built for itself only; another architecture and the sanitizers need it from source.
if(CMAKE_CROSSCOMPILING OR INT8Q_SANITIZE)
  set(INT8Q_GOOGLETEST_SOURCE /usr/src/googletest CACHE PATH "GoogleTest's source")
  set(INSTALL_GTEST OFF)
  set(BUILD_GMOCK OFF)
  add_subdirectory(${INT8Q_GOOGLETEST_SOURCE} ${PROJECT_BINARY_DIR}/googletest EXCLUDE_FROM_ALL SYSTEM)
  if(NOT TARGET GTest::gtest_main)
    add_library(GTest::gtest_main ALIAS gtest_main)
  endif()
else()
  find_package(GTest 1.11 REQUIRED)
endif()
include(GoogleTest)

add_library(int8q_test_support INTERFACE)
file(GLOB support_sources CONFIGURE_DEPENDS tests/support/*.cpp)
if(support_sources)
  add_library(int8q_test_support_objects STATIC ${support_sources})
  target_include_directories(int8q_test_support_objects PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(
    int8q_test_support_objects
    PRIVATE int8q_testing int8q_cxx int8q_warnings int8q_numerics Eigen3::Eigen GTest::gtest
  )
  target_link_libraries(int8q_test_support INTERFACE int8q_test_support_objects)
endif()
target_include_directories(int8q_test_support INTERFACE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/tests)
target_link_libraries(
  int8q_test_support
  INTERFACE int8q_testing int8q_cxx int8q_warnings int8q_numerics Eigen3::Eigen GTest::gtest GTest::gtest_main
)
# Tests check the shape of the real files, whatever directory they run in.
target_compile_definitions(
  int8q_test_support
  INTERFACE INT8Q_SOURCE_DIR="${PROJECT_SOURCE_DIR}" INT8Q_BINARY_DIR="${PROJECT_BINARY_DIR}"
)

file(GLOB test_sources CONFIGURE_DEPENDS tests/test_*.cpp)
foreach(source IN LISTS test_sources)
  cmake_path(GET source STEM name)
  add_executable(${name} ${source})
  target_link_libraries(${name} PRIVATE int8q_test_support)
  set(labels unit)
  set(timeout 300)
  if(name MATCHES "_slow$")
    set(labels slow)
    set(timeout 3000)
  endif()
  gtest_discover_tests(
    ${name}
    DISCOVERY_MODE PRE_TEST
    DISCOVERY_TIMEOUT 60
    PROPERTIES LABELS "${labels}" TIMEOUT ${timeout}
  )
endforeach()

# Device code on the emulator. Fibers are beyond TSan, and what runs does not depend on the host.
if(NOT CMAKE_CROSSCOMPILING AND NOT INT8Q_SANITIZE MATCHES thread)
  find_package(Boost REQUIRED COMPONENTS context)
  add_library(int8q_cuda_emulation STATIC tests/cuda_emulation/emulator.cpp tests/cuda_emulation/memory.cpp)
  target_link_libraries(int8q_cuda_emulation PUBLIC int8q_test_support Boost::context)
  target_compile_options(int8q_cuda_emulation PUBLIC -Wno-unknown-pragmas) # unroll
  # A stack frame of ASan's own for each call of each fiber takes minutes; the emulator's memory is checked all the same.
  set(emulation_environment "ASAN_OPTIONS=strict_string_checks=1:allocator_may_return_null=1")
  if(INT8Q_SANITIZE)
    target_compile_definitions(int8q_cuda_emulation PUBLIC INT8Q_FEW_ARCHITECTURES)
  endif()
  file(GLOB emulation_sources CONFIGURE_DEPENDS tests/cuda_emulation/test_*.cpp)
  foreach(source IN LISTS emulation_sources)
    cmake_path(GET source STEM name)
    set(name cuda_${name})
    add_executable(${name} ${source})
    target_link_libraries(${name} PRIVATE int8q_cuda_emulation)
    gtest_discover_tests(
      ${name}
      DISCOVERY_MODE PRE_TEST
      DISCOVERY_TIMEOUT 60
      PROPERTIES LABELS unit TIMEOUT 300 ENVIRONMENT "${emulation_environment}"
    )
  endforeach()
endif()

file(GLOB c_test_sources CONFIGURE_DEPENDS tests/test_*.c)
foreach(source IN LISTS c_test_sources)
  cmake_path(GET source STEM name)
  add_executable(${name} ${source})
  target_compile_options(
    ${name}
    PRIVATE -std=c99 -pedantic -Wall -Wextra -Werror
  )
  target_link_libraries(${name} PRIVATE int8q m)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS unit TIMEOUT 300)
endforeach()

# libFuzzer targets are run by hand; here they only have to compile.
file(GLOB fuzz_sources CONFIGURE_DEPENDS tests/fuzz/*.cpp)
add_library(int8q_fuzz_targets OBJECT ${fuzz_sources})
target_include_directories(int8q_fuzz_targets PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
target_link_libraries(int8q_fuzz_targets PRIVATE int8q_warnings)

include(cmake/Checks.cmake)
