# SPDX-License-Identifier: Apache-2.0
#
# The CUDA kernels: compiled by NVRTC, which needs neither a toolkit nor a GPU, into build/PRESET/cubins, and embedded in the
# library. Without NVRTC the library is built all the same and says that it has no kernels.
set(INT8Q_CUDA AUTO CACHE STRING "AUTO, ON or OFF: embed CUDA kernels if NVRTC is there, in any case, or never")
set_property(CACHE INT8Q_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT INT8Q_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "INT8Q_CUDA=${INT8Q_CUDA}: expected AUTO, ON or OFF")
endif()
set(INT8Q_CUDA_ARCHITECTURES "" CACHE STRING "architectures to embed, as sm_80;compute_80; all if empty")
set(INT8Q_NVRTC "" CACHE FILEPATH "libnvrtc.so; that of tools/cuda/requirements.txt, or a toolkit's, if empty")

set(INT8Q_HAS_KERNELS OFF)
set(cubins ${PROJECT_BINARY_DIR}/cubins)
set(compile_kernels ${PROJECT_SOURCE_DIR}/tools/cuda/compile_kernels.py)
if(INT8Q_CUDA STREQUAL OFF)
  message(STATUS "int8q: no CUDA kernels (INT8Q_CUDA=OFF)")
  return()
endif()

# The Python that has NVRTC: that of `make`, else the one that builds a wheel; the first whose NVRTC knows all architectures.
find_package(Python3 COMPONENTS Interpreter QUIET)
set(nvrtc_option "")
if(INT8Q_NVRTC)
  set(nvrtc_option --nvrtc ${INT8Q_NVRTC})
endif()
set(arch_option "")
if(INT8Q_CUDA_ARCHITECTURES)
  set(arch_option --arch ${INT8Q_CUDA_ARCHITECTURES})
endif()
set(unknown "")
foreach(python IN ITEMS ${PROJECT_SOURCE_DIR}/build/venv/bin/python ${Python3_EXECUTABLE})
  if(NOT EXISTS ${python} OR (INT8Q_HAS_KERNELS AND unknown STREQUAL ""))
    continue()
  endif()
  execute_process(
    COMMAND ${python} ${compile_kernels} --find ${nvrtc_option} ${arch_option}
    RESULT_VARIABLE failed
    OUTPUT_VARIABLE found
    ERROR_VARIABLE why
    OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_STRIP_TRAILING_WHITESPACE
  )
  if(failed)
    continue()
  endif()
  string(JSON its_unknown GET "${found}" unknown)
  if(NOT INT8Q_HAS_KERNELS OR its_unknown STREQUAL "")
    set(INT8Q_HAS_KERNELS ON)
    set(nvrtc_python ${python})
    set(unknown "${its_unknown}")
    string(JSON INT8Q_CUDA_IMAGES GET "${found}" known)
    string(JSON nvrtc GET "${found}" path)
    string(JSON nvrtc_version GET "${found}" version)
  endif()
endforeach()
set(how "pip install -r tools/cuda/requirements.txt for the Python that CMake finds, or name a libnvrtc.so by INT8Q_NVRTC")
if(NOT INT8Q_HAS_KERNELS OR INT8Q_CUDA_IMAGES STREQUAL "")
  set(INT8Q_HAS_KERNELS OFF)
  if(INT8Q_CUDA STREQUAL ON OR INT8Q_NVRTC)
    message(FATAL_ERROR "int8q: no NVRTC to compile CUDA kernels with: ${why}; ${how}")
  endif()
  message(STATUS "int8q: no CUDA kernels, since there is no NVRTC; ${how}")
  return()
endif()
message(STATUS "int8q: CUDA kernels by ${nvrtc}, NVRTC ${nvrtc_version}")
if(NOT unknown STREQUAL "")
  list(JOIN unknown ", " unknown_text)
  set(all "for all, let `make` install NVRTC's wheel and leave INT8Q_NVRTC empty, or ${how}, of CUDA 12.9")
  if(INT8Q_CUDA STREQUAL ON OR INT8Q_CUDA_ARCHITECTURES)
    message(
      FATAL_ERROR
      "int8q: NVRTC ${nvrtc_version} does not know ${unknown_text}; ${all}; or ask for less by "
      "-DINT8Q_CUDA_ARCHITECTURES='${INT8Q_CUDA_IMAGES}'"
    )
  endif()
  message(WARNING "int8q: no kernels for ${unknown_text}, which NVRTC ${nvrtc_version} does not know; ${all}")
endif()

file(GLOB kernel_sources CONFIGURE_DEPENDS src/cuda/kernels/*)
if(IS_ABSOLUTE ${nvrtc})
  list(APPEND kernel_sources ${nvrtc})
endif()
list(JOIN INT8Q_CUDA_IMAGES ", " images_text)
add_custom_command(
  OUTPUT ${cubins}/images.inc
  COMMAND ${nvrtc_python} ${compile_kernels} ${cubins} --nvrtc ${nvrtc} --arch ${INT8Q_CUDA_IMAGES}
  DEPENDS ${kernel_sources} ${compile_kernels}
  COMMENT "Compiling CUDA kernels for ${images_text}"
  VERBATIM
)
