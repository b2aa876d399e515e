# SPDX-License-Identifier: Apache-2.0
#
# bench/bench_NAME.cpp is a Google Benchmark executable. They use the test library, whose AVX-VNNI kernels also run on CPUs
# that only have AVX512-VNNI. oneDNN, the opponent, is looked for by hand: Debian's package configuration asks for OpenCL.
find_package(benchmark QUIET)
if(NOT benchmark_FOUND OR NOT TARGET int8q_testing OR NOT isa_folders)
  message(
    STATUS
    "int8q: benchmarks are not built; they need x86-64, Google Benchmark (libbenchmark-dev) and INT8Q_BUILD_TESTS"
  )
  return()
endif()
find_package(CLI11 REQUIRED)
find_package(OpenMP QUIET COMPONENTS CXX)
find_path(INT8Q_ONEDNN_INCLUDE_DIR oneapi/dnnl/dnnl.hpp)
find_library(INT8Q_ONEDNN_LIBRARY dnnl)

file(GLOB bench_support CONFIGURE_DEPENDS bench/support/*.cpp)
add_library(int8q_bench_support STATIC ${bench_support})
target_include_directories(
  int8q_bench_support
  PUBLIC ${PROJECT_SOURCE_DIR}/bench ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/tests
)
target_link_libraries(
  int8q_bench_support
  PUBLIC int8q_testing int8q_cxx int8q_warnings benchmark::benchmark
  PRIVATE CLI11::CLI11 Threads::Threads
)
if(INT8Q_ONEDNN_INCLUDE_DIR AND INT8Q_ONEDNN_LIBRARY AND OpenMP_CXX_FOUND)
  target_compile_definitions(int8q_bench_support PRIVATE INT8Q_BENCH_ONEDNN=1)
  target_include_directories(int8q_bench_support SYSTEM PRIVATE ${INT8Q_ONEDNN_INCLUDE_DIR})
  target_link_libraries(int8q_bench_support PRIVATE ${INT8Q_ONEDNN_LIBRARY} OpenMP::OpenMP_CXX)
else()
  message(STATUS "int8q: benchmarks have no oneDNN to compare with (libdnnl-dev)")
endif()

file(GLOB bench_sources CONFIGURE_DEPENDS bench/bench_*.cpp)
foreach(source IN LISTS bench_sources)
  cmake_path(GET source STEM name)
  add_executable(${name} ${source})
  target_link_libraries(${name} PRIVATE int8q_bench_support)
endforeach()
