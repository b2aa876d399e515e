# SPDX-License-Identifier: Apache-2.0
#
# Two interface targets: int8q_warnings for everything that is compiled here, int8q_numerics for all of src/.

# Sanitizers are for every target of the tree alike: a mixture gives false reports.
# Their instrumentation makes g++ see uninitialized values that are none.
if(INT8Q_SANITIZE)
  add_compile_options(
    -fsanitize=${INT8Q_SANITIZE}
    -fno-sanitize-recover=all
    -fno-omit-frame-pointer
    -Wno-maybe-uninitialized
  )
  add_link_options(-fsanitize=${INT8Q_SANITIZE})
endif()

add_library(int8q_warnings INTERFACE)
target_compile_options(
  int8q_warnings
  INTERFACE
    -Wall
    -Wextra
    -Wpedantic
    -Wshadow
    $<$<BOOL:${INT8Q_WERROR}>:-Werror>
    $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor
    -Woverloaded-virtual>
)
# g++ 12 warns of an overlap inside its own std::string::operator+ (GCC bug 105651).
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(int8q_warnings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
endif()

# -ffp-contract=off: every ISA evaluates the same expression, so results do not depend on which one ran. The other two
# only give up errno and trap bookkeeping, never a value.
add_library(int8q_numerics INTERFACE)
target_compile_options(int8q_numerics INTERFACE -ffp-contract=off -fno-math-errno -fno-trapping-math)
