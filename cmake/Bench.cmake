# SPDX-License-Identifier: Apache-2.0
#
# bench/bench_NAME.cpp is a Google Benchmark executable.
file(GLOB bench_sources CONFIGURE_DEPENDS bench/bench_*.cpp)
if(bench_sources)
  find_package(benchmark QUIET)
  if(NOT benchmark_FOUND)
    message(STATUS "int8q: Google Benchmark is not found; benchmarks are not built")
    return()
  endif()
  foreach(source IN LISTS bench_sources)
    cmake_path(GET source STEM name)
    add_executable(${name} ${source})
    target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/tests)
    target_link_libraries(
      ${name}
      PRIVATE int8q_static int8q_cxx int8q_warnings int8q_numerics benchmark::benchmark benchmark::benchmark_main
    )
  endforeach()
endif()
