# Installs what completes PROGRAM's flags in bash and zsh, where these look for it. The
# program itself writes it, when it is installed: not if it cannot run here.
function(attention_install_completion program)
  if(CMAKE_CROSSCOMPILING AND NOT CMAKE_CROSSCOMPILING_EMULATOR)
    return()
  endif()
  foreach(shell bash zsh)
    set(script ${CMAKE_CURRENT_BINARY_DIR}/${program}.${shell})
    install(CODE "execute_process(
      COMMAND ${CMAKE_CROSSCOMPILING_EMULATOR} \"$<TARGET_FILE:${program}>\" completion ${shell}
      OUTPUT_FILE \"${script}\"
      COMMAND_ERROR_IS_FATAL ANY)")
  endforeach()
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/${program}.bash
    DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions
    RENAME ${program})
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/${program}.zsh
    DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions
    RENAME _${program})
endfunction()
