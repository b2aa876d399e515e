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
  add_library(
    int8q_cuda_emulation
    STATIC
    tests/cuda_emulation/emulator.cpp
    tests/cuda_emulation/memory.cpp
    tests/cuda_emulation/sm90.cpp
  )
  target_link_libraries(int8q_cuda_emulation PUBLIC int8q_test_support Boost::context)
  target_compile_options(int8q_cuda_emulation PUBLIC -Wno-unknown-pragmas) # unroll
  # A stack frame of ASan's own for each call of each fiber takes minutes; the emulator's memory is checked all the same.
  set(emulation_environment "ASAN_OPTIONS=strict_string_checks=1:allocator_may_return_null=1")
  if(INT8Q_SANITIZE)
    # No two of these run the same code.
    target_compile_definitions(int8q_cuda_emulation PUBLIC INT8Q_EMULATED_ARCHITECTURES=Sm70,Sm75,Sm80)
  endif()
  file(GLOB emulation_sources CONFIGURE_DEPENDS tests/cuda_emulation/test_*.cpp)
  # Fragments are judged by CuTe's layouts, where tests/cuda_emulation/requirements.txt is installed.
  file(GLOB site_packages ${PROJECT_SOURCE_DIR}/build/venv/lib/python3*/site-packages)
  find_path(
    INT8Q_CUTE
    cute/layout.hpp
    PATHS ${site_packages}
    PATH_SUFFIXES cutlass_library/source/include
    NO_DEFAULT_PATH
    DOC "CuTe's headers"
  )
  find_path(
    INT8Q_CUTE_CUDA
    crt/host_defines.h
    PATHS ${site_packages}
    PATH_SUFFIXES nvidia/cu13/include
    NO_DEFAULT_PATH
    DOC "the CUDA headers that CuTe includes"
  )
  if(INT8Q_CUTE AND INT8Q_CUTE_CUDA)
    list(APPEND emulation_sources ${PROJECT_SOURCE_DIR}/tests/cuda_emulation/fragments.cpp)
  else()
    message(
      STATUS
      "int8q: no test of fragments; PIP_NO_DEPS=1 tools/dev/venv.sh tests/cuda_emulation/requirements.txt brings CuTe"
    )
  endif()
  foreach(source IN LISTS emulation_sources)
    cmake_path(GET source STEM name)
    string(REPLACE test_ "" name ${name})
    set(name cuda_test_${name})
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

if(TARGET cuda_test_fragments)
  target_include_directories(cuda_test_fragments SYSTEM PRIVATE ${INT8Q_CUTE} ${INT8Q_CUTE_CUDA} ${INT8Q_CUTE_CUDA}/cccl)
endif()

# The CUDA backend through the C boundary, on a driver whose GPU is the emulator. On a machine with a GPU test_cuda runs on it.
if(TARGET int8q_cuda_emulation AND INT8Q_HAS_KERNELS)
  add_library(
    int8q_libcuda
    SHARED
    tests/cuda_emulation/libcuda.cpp
    tests/cuda_emulation/emulator.cpp
    tests/cuda_emulation/memory.cpp
    tests/cuda_emulation/sm90.cpp
  )
  # Of each image: its architecture's number in arch.h, which several may share, and a GPU that runs it. Under a sanitizer, of one.
  set(emulated "")
  set(capabilities "")
  foreach(
    known
    IN
    ITEMS
      sm_70:70:7.0
      sm_75:75:7.5
      sm_80:80:8.0
      sm_86:86:8.6
      sm_89:86:8.9
      sm_90:90:9.0-sm_90
      sm_90a:901:9.0
      sm_100:90:10.0
      sm_120:120:12.0
      compute_80:86:8.7
  )
    string(REPLACE ":" ";" known ${known})
    list(GET known 0 image)
    list(GET known 1 arch)
    list(GET known 2 capability)
    if(image IN_LIST INT8Q_CUDA_IMAGES AND NOT arch IN_LIST emulated)
      list(APPEND emulated ${arch})
      list(APPEND capabilities ${capability})
    endif()
  endforeach()
  list(GET capabilities 0 usual)
  if(8.0 IN_LIST capabilities)
    set(usual 8.0)
    list(TRANSFORM capabilities REPLACE "^9.0$" "9.0,8.0")
  endif()
  if(INT8Q_SANITIZE AND usual STREQUAL 8.0)
    set(emulated 80)
    set(capabilities 8.0)
  endif()
  foreach(arch IN LISTS emulated)
    add_library(int8q_kernels_${arch} OBJECT tests/cuda_emulation/entries.cpp)
    target_compile_definitions(int8q_kernels_${arch} PRIVATE INT8Q_ARCH=${arch} INT8Q_SUFFIX=sm${arch})
    target_sources(int8q_libcuda PRIVATE $<TARGET_OBJECTS:int8q_kernels_${arch}>)
    list(APPEND emulated_kernels int8q_kernels_${arch})
  endforeach()
  foreach(target IN ITEMS int8q_libcuda ${emulated_kernels})
    target_include_directories(
      ${target}
      PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/tests
    )
    target_link_libraries(${target} PRIVATE int8q_warnings int8q_numerics Boost::context)
    target_compile_options(${target} PRIVATE -Wno-unknown-pragmas -fvisibility=hidden)
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  endforeach()
  set(libcuda_folder ${PROJECT_BINARY_DIR}/libcuda)
  set_target_properties(
    int8q_libcuda
    PROPERTIES OUTPUT_NAME cuda SOVERSION 1 LIBRARY_OUTPUT_DIRECTORY ${libcuda_folder}
  )

  add_library(int8q_libcublaslt SHARED tests/cuda_emulation/libcublaslt.cpp)
  target_include_directories(int8q_libcublaslt PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(int8q_libcublaslt PRIVATE int8q_warnings int8q_libcuda)
  set(libcublaslt_folder ${PROJECT_BINARY_DIR}/libcublaslt)
  set_target_properties(
    int8q_libcublaslt
    PROPERTIES OUTPUT_NAME cublasLt SOVERSION 13 LIBRARY_OUTPUT_DIRECTORY ${libcublaslt_folder}
  )

  file(GLOB cuda_test_sources CONFIGURE_DEPENDS tests/cuda/*.cpp)
  add_executable(test_cuda ${cuda_test_sources})
  target_link_libraries(test_cuda PRIVATE int8q_test_support)
  add_dependencies(test_cuda int8q_libcuda int8q_libcublaslt)
  set(
    with_cublaslt
    "LD_LIBRARY_PATH=${libcuda_folder}:${libcublaslt_folder};INT8Q_CUDA_GEMM=cublaslt;INT8Q_STUB_GPUS=${usual}"
  )
  if(INT8Q_SANITIZE) # LeakSanitizer's tracer itself crashes at the end; cuda_8.0 looks for leaks
    string(APPEND with_cublaslt ";ASAN_OPTIONS=strict_string_checks=1:allocator_may_return_null=1:detect_leaks=0")
  endif()
  add_test(NAME cuda_cublaslt COMMAND test_cuda --gtest_filter=CudaLayer.*:CudaDispatch.*)
  set_tests_properties(
    cuda_cublaslt
    PROPERTIES LABELS unit TIMEOUT 600 ENVIRONMENT "${emulation_environment};${with_cublaslt}"
  )
  # What it says at its end is told by scripts: skipped tests have not run.
  add_test(NAME cuda_skipped COMMAND test_cuda --gtest_filter=CudaLife.TwoGpusAreApart)
  set_tests_properties(
    cuda_skipped
    PROPERTIES
      LABELS unit
      TIMEOUT 60
      ENVIRONMENT "${emulation_environment};LD_LIBRARY_PATH=${libcuda_folder};INT8Q_STUB_GPUS=${usual}"
      PASS_REGULAR_EXPRESSION "[\r\n]0 tests ran on"
  )
  foreach(capability IN LISTS capabilities)
    set(cuda_environment "${emulation_environment};LD_LIBRARY_PATH=${libcuda_folder};INT8Q_STUB_GPUS=${capability}")
    if(capability MATCHES "-(sm_.*)$") # where stoi stops
      string(APPEND cuda_environment ";INT8Q_CUDA_IMAGE=${CMAKE_MATCH_1}")
    endif()
    add_test(NAME cuda_${capability} COMMAND test_cuda)
    set_tests_properties(
      cuda_${capability}
      PROPERTIES LABELS unit TIMEOUT 600 ENVIRONMENT "${cuda_environment}"
    )
    add_test(NAME cuda_${capability}_every_shape COMMAND test_cuda --gtest_filter=*EveryShape*:CudaStateless.*)
    set_tests_properties(
      cuda_${capability}_every_shape
      PROPERTIES LABELS slow TIMEOUT 3000 ENVIRONMENT "${cuda_environment};INT8Q_TEST_GRID=full"
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
