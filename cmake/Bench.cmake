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

# What needs no opponent.
add_library(int8q_bench_suite STATIC bench/support/machine.cpp bench/support/suite.cpp)
target_include_directories(
  int8q_bench_suite
  PUBLIC ${PROJECT_SOURCE_DIR}/bench ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/tests
)
target_link_libraries(
  int8q_bench_suite
  PUBLIC int8q_testing int8q_cxx int8q_warnings benchmark::benchmark
  PRIVATE Threads::Threads
)

add_library(int8q_bench_support STATIC bench/support/main.cpp bench/support/onednn.cpp)
target_link_libraries(int8q_bench_support PUBLIC int8q_bench_suite PRIVATE CLI11::CLI11)
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

# What bench_linear --backend=cuda runs: a program of its own, to be carried to a machine with a GPU, so it links no
# opponent and has Google Benchmark's library beside it.
if(INT8Q_HAS_KERNELS)
  file(GLOB cuda_bench_sources CONFIGURE_DEPENDS bench/cuda/*.cpp)
  add_executable(cuda_bench_linear ${cuda_bench_sources})
  target_link_libraries(
    cuda_bench_linear
    PRIVATE int8q_bench_suite CLI11::CLI11 nlohmann_json::nlohmann_json ${CMAKE_DL_LIBS}
  )
  set_target_properties(cuda_bench_linear PROPERTIES BUILD_RPATH "$ORIGIN")
  add_custom_command(
    TARGET cuda_bench_linear
    POST_BUILD
    COMMAND
      ${CMAKE_COMMAND} -E copy_if_different $<TARGET_FILE:benchmark::benchmark>
      $<TARGET_FILE_DIR:cuda_bench_linear>/$<TARGET_SONAME_FILE_NAME:benchmark::benchmark>
    VERBATIM
  )
  if(NOT INT8Q_SANITIZE AND "sm_80" IN_LIST INT8Q_CUDA_IMAGES AND "sm_90" IN_LIST INT8Q_CUDA_IMAGES)
    int8q_add_check(cuda_bench ${INT8Q_PYTHON} ${checks}/cuda_bench.py $<TARGET_FILE:cuda_bench_linear> ${libcuda_folder}
                    ${libcublaslt_folder}
    )
  endif()
endif()
