# Options for this project's own targets: link attention_compile_options.

add_library(attention_compile_options INTERFACE)
target_compile_features(attention_compile_options INTERFACE cxx_std_20)
target_compile_options(attention_compile_options INTERFACE
  -Wall -Wextra -Wno-sign-compare
  $<$<BOOL:${ATTENTION_WARNINGS_AS_ERRORS}>:-Werror>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # False alarms on "text" + std::string: gcc.gnu.org/PR105651.
  target_compile_options(attention_compile_options INTERFACE -Wno-restrict)
endif()
target_include_directories(attention_compile_options INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)

if(ATTENTION_SANITIZE)
  add_compile_options(-fsanitize=${ATTENTION_SANITIZE} -fno-omit-frame-pointer
                      -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${ATTENTION_SANITIZE})
endif()

if(ATTENTION_BUILD_FUZZERS)
  # Coverage of all code, for the fuzzer to steer by.
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()

set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
