# SPDX-License-Identifier: Apache-2.0
file(GLOB minilm_sources CONFIGURE_DEPENDS examples/minilm/*.cpp)
if(minilm_sources)
  find_package(Eigen3 3.3 REQUIRED NO_MODULE)
  add_executable(minilm ${minilm_sources})
  # The example's own fp32 baseline is Eigen, which vectorizes at compile time only.
  if(NOT CMAKE_CROSSCOMPILING)
    target_compile_options(minilm PRIVATE -march=native)
  endif()
  target_compile_options(minilm PRIVATE $<$<CONFIG:Release>:-O3>)
  target_link_libraries(
    minilm
    PRIVATE int8q int8q_cxx int8q_warnings Eigen3::Eigen nlohmann_json::nlohmann_json
  )
endif()
