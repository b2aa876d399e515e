# SPDX-License-Identifier: Apache-2.0
#
# Checks of what was built, rather than of what it computes: ABI, packaging, dispatch on other CPUs.
set(checks ${PROJECT_SOURCE_DIR}/tests/checks)
# Debian's own python3 has pycparser; another one that comes first in PATH need not.
set(INT8Q_PYTHON /usr/bin/python3 CACHE FILEPATH "a Python 3 with pycparser")

function(int8q_add_check name)
  add_test(NAME check_${name} COMMAND ${ARGN})
  set_tests_properties(check_${name} PROPERTIES LABELS check TIMEOUT 600)
  # The sanitizers, too, watch what runs the library.
  if(INT8Q_SANITIZE AND name MATCHES "^(command|selftest_host)$")
    set_tests_properties(check_${name} PROPERTIES LABELS unit)
  endif()
endfunction()

int8q_add_check(library ${INT8Q_PYTHON} ${checks}/library.py $<TARGET_FILE:int8q>
                ${PROJECT_SOURCE_DIR}/docs/abi/manifest-${INT8Q_ABI_MAJOR}.${INT8Q_ABI_MINOR}.json
)

if(CMAKE_CROSSCOMPILING)
  if(TARGET int8q_cli)
    int8q_add_check(selftest_aarch64 ${INT8Q_PYTHON} ${checks}/selftest.py $<TARGET_FILE:int8q_cli> aarch64
                    ${CMAKE_CROSSCOMPILING_EMULATOR}
    )
  endif()
  return()
endif()

int8q_add_check(generated ${INT8Q_PYTHON} ${PROJECT_SOURCE_DIR}/tools/abi/generate.py --check)
int8q_add_check(generator ${INT8Q_PYTHON} ${checks}/generator.py ${CMAKE_C_COMPILER} ${CMAKE_CXX_COMPILER})
int8q_add_check(bench_report ${INT8Q_PYTHON} ${checks}/bench_report.py)
int8q_add_check(cuda_report ${INT8Q_PYTHON} ${checks}/cuda_report.py)
set(test_cuda "")
if(TARGET test_cuda)
  set(test_cuda $<TARGET_FILE:test_cuda>)
endif()
int8q_add_check(gpu_script ${INT8Q_PYTHON} ${checks}/gpu_script.py ${test_cuda})
int8q_add_check(binding ${INT8Q_PYTHON} ${checks}/binding.py $<TARGET_FILE:int8q> ${CMAKE_C_COMPILER})
# Not by the virtual environment's Python: doctor has to run where NumPy is missing.
int8q_add_check(doctor ${INT8Q_PYTHON} ${PROJECT_SOURCE_DIR}/tests/python/test_doctor.py)
set(doctor_environment "INT8Q_LIBRARY=$<TARGET_FILE:int8q>" "INT8Q_CC=${CMAKE_C_COMPILER}")
if(TARGET int8q_cli)
  list(APPEND doctor_environment "INT8Q_COMMAND=$<TARGET_FILE:int8q_cli>")
endif()
set_tests_properties(check_doctor PROPERTIES ENVIRONMENT "${doctor_environment}")
int8q_add_check(readme ${INT8Q_PYTHON} ${checks}/readme.py $<TARGET_FILE:int8q> ${CMAKE_C_COMPILER} ${CMAKE_CXX_COMPILER})
int8q_add_check(headers ${checks}/headers.sh ${PROJECT_SOURCE_DIR}/include ${CMAKE_C_COMPILER} ${CMAKE_CXX_COMPILER})
int8q_add_check(consumers ${checks}/consumers.sh ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR} ${CMAKE_C_COMPILER}
                ${CMAKE_CXX_COMPILER}
)

# pytest and NumPy are in the virtual environment that `make test` makes of tests/python/requirements.txt.
set(
  INT8Q_TEST_PYTHON
  ${PROJECT_SOURCE_DIR}/build/venv/bin/python
  CACHE FILEPATH
  "a Python 3 with tests/python/requirements.txt"
)
set(
  python_environment
  "INT8Q_LIBRARY=$<TARGET_FILE:int8q>"
  "INT8Q_CC=${CMAKE_C_COMPILER}"
  "PYTHONPATH=${PROJECT_SOURCE_DIR}/python"
  "PYTHONDONTWRITEBYTECODE=1"
  "HF_HUB_OFFLINE=1"
  "OMP_WAIT_POLICY=passive" # tests run side by side
)
# torch and what stands on it are in the one that `make test` makes of python/environments/current.txt.
set(
  INT8Q_TORCH_PYTHON
  ${PROJECT_SOURCE_DIR}/.venvs/current/bin/python
  CACHE FILEPATH
  "a Python 3 with torch and transformers"
)
set(
  torch_tests
  torch
  transformers
  peft
  as_bitsandbytes
  as_bitsandbytes_scripts
  bitsandbytes
)
list(
  TRANSFORM torch_tests
  REPLACE "(.+)" "--ignore=${PROJECT_SOURCE_DIR}/tests/python/test_\\1.py"
  OUTPUT_VARIABLE without_torch
)
set(
  run_pytest
  -m
  pytest
  -q
  -rs
  -p
  no:cacheprovider
)
int8q_add_check(python ${INT8Q_TEST_PYTHON} ${run_pytest} --ignore=${PROJECT_SOURCE_DIR}/tests/python/test_doctor.py
  --ignore-glob=${PROJECT_SOURCE_DIR}/tests/python/test_cuda*.py ${without_torch} ${PROJECT_SOURCE_DIR}/tests/python
)
set_tests_properties(check_python PROPERTIES ENVIRONMENT "${python_environment}")
foreach(name IN LISTS torch_tests)
  int8q_add_check(${name} ${INT8Q_TORCH_PYTHON} ${run_pytest} ${PROJECT_SOURCE_DIR}/tests/python/test_${name}.py)
  set_tests_properties(check_${name} PROPERTIES ENVIRONMENT "${python_environment}" TIMEOUT 1800)
endforeach()

# No GPU and no toolkit: the kernels are compiled by NVRTC, and read.
if(CMAKE_BUILD_TYPE STREQUAL Release AND isa_folders AND "sm_70" IN_LIST INT8Q_CUDA_IMAGES)
  add_executable(check_cuda_shared_memory tests/checks/cuda_shared_memory.cpp)
  target_include_directories(check_cuda_shared_memory PRIVATE src)
  target_link_libraries(check_cuda_shared_memory PRIVATE int8q_warnings)
  int8q_add_check(cuda_kernels ${INT8Q_TEST_PYTHON} ${checks}/cuda_kernels.py ${PROJECT_BINARY_DIR}/cubins
                  $<TARGET_FILE:check_cuda_shared_memory>
  )
  int8q_add_check(cuda_mutations ${INT8Q_TEST_PYTHON} ${checks}/cuda_mutations.py ${CMAKE_CXX_COMPILER} ${PROJECT_BINARY_DIR})
  set_tests_properties(check_cuda_mutations PROPERTIES LABELS slow TIMEOUT 3000)
  int8q_add_check(cuda_nvcc ${INT8Q_TEST_PYTHON} ${checks}/cuda_nvcc.py ${PROJECT_BINARY_DIR}/cubins)
  set_tests_properties(
    check_cuda_nvcc
    PROPERTIES LABELS slow TIMEOUT 1200 SKIP_RETURN_CODE 77
  )
endif()

# What is made of them, by an NVRTC of any version, which a few lines of C play.
int8q_add_check(cuda_nvrtc ${INT8Q_PYTHON} ${checks}/cuda_nvrtc.py ${CMAKE_C_COMPILER} ${CMAKE_COMMAND})

# Of a GPU of capability 8.6, which a build for others alone has no image for.
set(plays_86 OFF)
if(TARGET int8q_libcuda AND NOT INT8Q_SANITIZE AND "${INT8Q_CUDA_IMAGES}" MATCHES "sm_80|sm_86|compute_80")
  set(plays_86 ON)
endif()

# torch's tensors on a GPU that a driver plays.
if(plays_86)
  int8q_add_check(cuda_tensors ${INT8Q_TORCH_PYTHON} ${run_pytest} ${PROJECT_SOURCE_DIR}/tests/python/test_cuda.py
    ${PROJECT_SOURCE_DIR}/tests/python/test_cuda_operations.py
  )
  set_tests_properties(
    check_cuda_tensors
    PROPERTIES ENVIRONMENT "${python_environment};LD_LIBRARY_PATH=${libcuda_folder};INT8Q_STUB_GPUS=8.6"
  )
endif()

# Which GPUs are found and what they run, by a driver that plays them.
if(plays_86 AND TARGET int8q_cli)
  int8q_add_check(cuda_presence ${INT8Q_PYTHON} ${checks}/cuda_presence.py $<TARGET_FILE:int8q> $<TARGET_FILE:int8q_cli>
                  ${libcuda_folder} ${CMAKE_C_COMPILER} ${INT8Q_CUDA_IMAGES}
  )
endif()

add_executable(check_reload tests/checks/reload.c)
target_include_directories(check_reload PRIVATE include)
target_link_libraries(check_reload PRIVATE int8q_warnings ${CMAKE_DL_LIBS})
int8q_add_check(reload check_reload $<TARGET_FILE:int8q>)

if(isa_folders)
  set(object_folders ${PROJECT_BINARY_DIR}/CMakeFiles/int8q_objects.dir ${PROJECT_BINARY_DIR}/CMakeFiles/int8q_dispatch.dir)
  int8q_add_check(isa_objects ${INT8Q_PYTHON} ${checks}/isa_objects.py ${object_folders})
  if(CMAKE_BUILD_TYPE STREQUAL Release)
    int8q_add_check(spills ${INT8Q_PYTHON} ${checks}/spills.py ${object_folders})
  endif()
endif()
if(TARGET int8q_cli)
  int8q_add_check(selftest_host ${INT8Q_PYTHON} ${checks}/selftest.py $<TARGET_FILE:int8q_cli> host)
  int8q_add_check(selftest_corruption ${INT8Q_PYTHON} ${checks}/selftest_corruption.py $<TARGET_FILE:int8q_cli_testing>)
  int8q_add_check(command ${INT8Q_PYTHON} ${checks}/command.py $<TARGET_FILE:int8q_cli>)
  if(isa_folders)
    foreach(cpu IN ITEMS Nehalem Haswell)
      int8q_add_check(selftest_${cpu} ${INT8Q_PYTHON} ${checks}/selftest.py $<TARGET_FILE:int8q_cli> ${cpu} qemu-x86_64
                      -cpu ${cpu}
      )
    endforeach()
  endif()
endif()

if(TARGET minilm AND TARGET int8q_cli)
  int8q_add_check(demo ${PROJECT_SOURCE_DIR}/examples/minilm/demo.sh ${PROJECT_BINARY_DIR})
  # It times one engine against the other: nothing else may run.
  set_tests_properties(check_demo PROPERTIES LABELS slow RUN_SERIAL ON)
endif()
