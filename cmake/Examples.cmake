# SPDX-License-Identifier: Apache-2.0
file(GLOB minilm_sources CONFIGURE_DEPENDS examples/minilm/*.cpp)
find_package(Eigen3 3.3 REQUIRED NO_MODULE)
find_package(CLI11 REQUIRED)
find_path(INT8Q_FMT_INCLUDE_DIR fmt/core.h REQUIRED)
find_path(INT8Q_UTF8PROC_INCLUDE_DIR utf8proc.h REQUIRED)
find_library(INT8Q_UTF8PROC_LIBRARY utf8proc REQUIRED)

add_executable(minilm ${minilm_sources})
target_compile_definitions(minilm PRIVATE FMT_HEADER_ONLY=1)
target_include_directories(minilm SYSTEM PRIVATE ${INT8Q_FMT_INCLUDE_DIR} ${INT8Q_UTF8PROC_INCLUDE_DIR})
# The example's own fp32 baseline is Eigen, which vectorizes at compile time only.
if(NOT CMAKE_CROSSCOMPILING)
  target_compile_options(minilm PRIVATE -march=native)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU) # g++ 12 calls its own AVX-512 intrinsics uninitialized (PR105593)
  target_compile_options(minilm PRIVATE -Wno-uninitialized -Wno-maybe-uninitialized)
endif()
target_compile_options(minilm PRIVATE $<$<CONFIG:Release>:-O3>)
target_link_libraries(
  minilm
  PRIVATE int8q int8q_cxx int8q_warnings Eigen3::Eigen CLI11::CLI11 ${INT8Q_UTF8PROC_LIBRARY} Threads::Threads
)
