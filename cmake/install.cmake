# The CMake package `attention`, for find_package(attention CONFIG REQUIRED).
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/attention)
configure_package_config_file(
  ${CMAKE_CURRENT_LIST_DIR}/attention-config.cmake.in
  ${PROJECT_BINARY_DIR}/attention-config.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/attention-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/attention-config.cmake
  ${PROJECT_BINARY_DIR}/attention-config-version.cmake
  DESTINATION ${package_dir})
install(EXPORT attention_targets
  NAMESPACE attention::
  FILE attention-targets.cmake
  DESTINATION ${package_dir})
