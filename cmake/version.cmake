# Run at every build (cmake -P): writes version.cc anew only where the version, the commit or a library
# has changed, so that nothing is rebuilt otherwise. Works without git and without a .git folder.
set(OF_COMMIT unknown)
find_program(GIT git)
if(GIT AND EXISTS ${OF_SOURCE}/.git)
  execute_process(COMMAND ${GIT} -C ${OF_SOURCE} describe --always --dirty --abbrev=12 --exclude=*
                  OUTPUT_VARIABLE described RESULT_VARIABLE failed ERROR_QUIET
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT failed)
    set(OF_COMMIT ${described})
  endif()
endif()
configure_file(${OF_SOURCE}/cli/version.cc.in ${OF_OUTPUT} @ONLY)
