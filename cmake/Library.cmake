# SPDX-License-Identifier: Apache-2.0
#
# The library, from one set of objects: shared (int8q), static (int8q_static), and static for tests (int8q_testing), whose
# dispatcher and AVX-VNNI folder are compiled once more with INT8Q_TEST_HOOKS.
find_package(nlohmann_json 3.9 REQUIRED) # header-only, private
find_path(INT8Q_XXHASH_INCLUDE_DIR xxhash.h REQUIRED) # header-only use, private

# The ABI level names the file: libint8q.so.1 -> libint8q.so.1.0.
file(STRINGS include/int8q/int8q.h abi_lines REGEX "^#define INT8Q_ABI_(MAJOR|MINOR) [0-9]+$")
string(REGEX REPLACE ".*INT8Q_ABI_MAJOR ([0-9]+).*" "\\1" INT8Q_ABI_MAJOR "${abi_lines}")
string(REGEX REPLACE ".*INT8Q_ABI_MINOR ([0-9]+).*" "\\1" INT8Q_ABI_MINOR "${abi_lines}")

string(TOLOWER "${CMAKE_SYSTEM_PROCESSOR}" processor)
if(processor MATCHES "^(x86_64|amd64)$")
  set(isa_folders avx2 avxvnni avx512bw avx512vnni)
else()
  set(isa_folders "")
endif()
# AVX-VNNI and AVX512-VNNI write their one instruction as inline assembly, so neither needs a flag of its own.
# -fno-exceptions keeps their objects free of shared symbols; g++ 12 calls its own AVX-512 intrinsics uninitialized (PR105593).
set(flags_avx2 -mavx2 -mfma -mf16c -fno-exceptions)
set(flags_avxvnni ${flags_avx2})
set(
  flags_avx512bw
  -mavx512f
  -mavx512bw
  -mavx512vl
  -mavx512dq
  ${flags_avx2}
  -mprefer-vector-width=512
)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  list(APPEND flags_avx512bw -Wno-uninitialized -Wno-maybe-uninitialized)
endif()
set(flags_avx512vnni ${flags_avx512bw})

file(
  GLOB common_sources
  CONFIGURE_DEPENDS
  src/api/*.cpp
  src/core/*.cpp
  src/checkpoint/*.cpp
  src/cpu/*.cpp
  src/cpu/generic/*.cpp
  src/cuda/*.cpp
)
if(INT8Q_HAS_KERNELS)
  set_source_files_properties(
    src/cuda/images.cpp
    PROPERTIES COMPILE_DEFINITIONS INT8Q_HAS_KERNELS=1 INCLUDE_DIRECTORIES ${cubins} OBJECT_DEPENDS ${cubins}/images.inc
  )
endif()
set(hooked_sources ${PROJECT_SOURCE_DIR}/src/cpu/registry.cpp)
foreach(isa IN LISTS isa_folders)
  file(GLOB isa_sources CONFIGURE_DEPENDS src/cpu/${isa}/*.cpp)
  set_source_files_properties(${isa_sources} PROPERTIES COMPILE_OPTIONS "${flags_${isa}}")
  if(isa STREQUAL avxvnni)
    list(APPEND hooked_sources ${isa_sources})
  else()
    list(APPEND common_sources ${isa_sources})
  endif()
endforeach()
list(REMOVE_ITEM common_sources ${hooked_sources})

function(int8q_add_objects name)
  add_library(${name} OBJECT ${ARGN})
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR}/include PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_include_directories(${name} SYSTEM PRIVATE ${INT8Q_XXHASH_INCLUDE_DIR})
  target_compile_definitions(${name} PRIVATE INT8Q_BUILDING=1 INT8Q_VERSION="${PROJECT_VERSION}")
  target_compile_options(
    ${name}
    PRIVATE -fvisibility=hidden -fvisibility-inlines-hidden -ffunction-sections -fdata-sections
  )
  target_link_libraries(${name} PRIVATE int8q_warnings int8q_numerics nlohmann_json::nlohmann_json)
endfunction()
int8q_add_objects(int8q_objects ${common_sources})
int8q_add_objects(int8q_dispatch ${hooked_sources})

add_library(int8q_headers INTERFACE)
target_include_directories(
  int8q_headers
  INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
)

add_library(int8q SHARED $<TARGET_OBJECTS:int8q_objects> $<TARGET_OBJECTS:int8q_dispatch>)
set(version_script ${PROJECT_SOURCE_DIR}/src/api/libint8q.map)
set_target_properties(
  int8q
  PROPERTIES
    VERSION ${INT8Q_ABI_MAJOR}.${INT8Q_ABI_MINOR}
    SOVERSION ${INT8Q_ABI_MAJOR}
    LINK_DEPENDS ${version_script}
    LINKER_LANGUAGE CXX
)
# nodelete: pool threads and fork handlers outlive a dlclose.
target_link_options(
  int8q
  PRIVATE
    -Wl,--version-script=${version_script}
    -Wl,-Bsymbolic
    -Wl,-z,nodelete
    -Wl,-z,now
    -Wl,-z,relro
    -Wl,-z,defs
    -Wl,-z,noexecstack
    -Wl,--gc-sections
    -Wl,--as-needed
)
target_link_libraries(int8q PUBLIC int8q_headers PRIVATE Threads::Threads ${CMAKE_DL_LIBS} m)

add_library(int8q_static STATIC $<TARGET_OBJECTS:int8q_objects> $<TARGET_OBJECTS:int8q_dispatch>)
set_target_properties(int8q_static PROPERTIES OUTPUT_NAME int8q LINKER_LANGUAGE CXX)
target_link_libraries(int8q_static PUBLIC int8q_headers Threads::Threads ${CMAKE_DL_LIBS} m)

# int8q.hpp: links nothing but libdl, since its loader can bring the library in at run time.
add_library(int8q_cxx INTERFACE)
target_compile_features(int8q_cxx INTERFACE cxx_std_17)
target_link_libraries(int8q_cxx INTERFACE int8q_headers ${CMAKE_DL_LIBS})

add_library(int8q::int8q ALIAS int8q)
add_library(int8q::static ALIAS int8q_static)
add_library(int8q::cxx ALIAS int8q_cxx)

if(INT8Q_BUILD_TESTS)
  int8q_add_objects(int8q_dispatch_testing ${hooked_sources})
  target_compile_definitions(int8q_dispatch_testing PRIVATE INT8Q_TEST_HOOKS=1)
  add_library(int8q_testing STATIC $<TARGET_OBJECTS:int8q_objects> $<TARGET_OBJECTS:int8q_dispatch_testing>)
  set_target_properties(int8q_testing PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(int8q_testing PUBLIC int8q_headers Threads::Threads ${CMAKE_DL_LIBS} m)
endif()
