# Clang spends more than half of its time on the headers of gRPC, protobuf and
# GoogleTest. With ATTENTION_PRECOMPILE_HEADERS it parses them once per group of
# targets that are compiled with the same options. Only the presets with sanitizers
# turn this on, so that the others fail where a file does not include what it uses.

# Defines a group NAME, for libraries or, with EXECUTABLES, for programs.
#   attention_precompile(NAME [EXECUTABLES]
#                        LIBRARIES LIBRARY... HEADERS HEADER...)
function(attention_precompile name)
  if(NOT ATTENTION_PRECOMPILE_HEADERS)
    return()
  endif()
  cmake_parse_arguments(PARSE_ARGV 1 arg "EXECUTABLES" "" "LIBRARIES;HEADERS")
  # A target must have a source.
  set(source ${CMAKE_CURRENT_BINARY_DIR}/${name}.cc)
  file(CONFIGURE OUTPUT ${source} CONTENT "")
  add_library(${name} OBJECT ${source})
  target_link_libraries(${name}
    PRIVATE ${arg_LIBRARIES} attention_compile_options)
  target_precompile_headers(${name} PRIVATE ${arg_HEADERS})
  if(arg_EXECUTABLES)
    set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${name} PRIVATE -fPIE)
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    # With times in it, it would be a new file to ccache after each build.
    target_compile_options(${name} PRIVATE "SHELL:-Xclang -fno-pch-timestamp")
  endif()
endfunction()

# Compiles TARGET with the headers of a group.
function(attention_use_precompiled target name)
  if(ATTENTION_PRECOMPILE_HEADERS)
    target_precompile_headers(${target} REUSE_FROM ${name})
  endif()
endfunction()
