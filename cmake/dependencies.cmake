# Every library the project uses, found here and nowhere else. A parent project
# that already provides a target is left its own.

find_package(Threads REQUIRED)
find_package(absl CONFIG REQUIRED)
find_package(hwy CONFIG REQUIRED)

if(ATTENTION_BUILD_SERVICE)
  # Debian 12 ships no CMake package of protobuf; newer distributions do.
  find_package(Protobuf CONFIG QUIET)
  if(NOT TARGET protobuf::libprotobuf)
    find_package(Protobuf REQUIRED)
  endif()
  find_package(gRPC CONFIG REQUIRED)
  if(NOT TARGET gRPC::grpc_cpp_plugin)
    find_program(ATTENTION_GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)
    add_executable(gRPC::grpc_cpp_plugin IMPORTED)
    set_target_properties(gRPC::grpc_cpp_plugin PROPERTIES
      IMPORTED_LOCATION ${ATTENTION_GRPC_CPP_PLUGIN})
  endif()
  find_package(OpenSSL REQUIRED)
  find_package(spdlog CONFIG REQUIRED)
  find_package(nlohmann_json CONFIG REQUIRED)
  find_package(CLI11 CONFIG REQUIRED)
  # prometheus-cpp's CMake package wants what its other parts need as well.
  find_package(PkgConfig REQUIRED)
  pkg_check_modules(libmicrohttpd REQUIRED IMPORTED_TARGET libmicrohttpd)
  pkg_check_modules(prometheus_cpp REQUIRED IMPORTED_TARGET prometheus-cpp-core)
endif()

if(ATTENTION_BUILD_PYTHON)
  find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
  # A Python package that says where its CMake package is.
  execute_process(COMMAND ${Python_EXECUTABLE} -m nanobind --cmake_dir
    OUTPUT_VARIABLE nanobind_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE
    COMMAND_ERROR_IS_FATAL ANY)
  find_package(nanobind CONFIG REQUIRED)
endif()
if(ATTENTION_BUILD_TESTS)
  find_package(GTest CONFIG REQUIRED)
endif()
if(ATTENTION_BUILD_BENCHMARKS)
  find_package(benchmark CONFIG REQUIRED)
endif()
